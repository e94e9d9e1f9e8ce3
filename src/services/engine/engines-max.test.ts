import { afterEach, describe, expect, test, vi } from 'vitest';
import { enginesMax } from './engines-max.ts';

afterEach(() => {
  vi.unstubAllEnvs();
});

describe('a daemon may have', () => {
  test('as many threads beside its main one as it is told', () => {
    expect(enginesMax({ DMKIT_ENGINES: '0' }, { tls: false })).toBe(0);
    expect(enginesMax({ DMKIT_ENGINES: '12' }, { tls: false })).toBe(12);
  });

  test('one for each further core otherwise, and at most seven', () => {
    expect([1, 2, 8, 64].map((cores) => enginesMax({}, { tls: false, cores }))).toEqual([0, 1, 7, 7]);
  });

  test('none with TLS', () => {
    expect(enginesMax({ DMKIT_ENGINES: '3' }, { tls: true })).toBe(0);
    expect(enginesMax({}, { tls: true, cores: 4 })).toBe(0);
  });

  test('none without system calls', () => {
    vi.stubEnv('DMKIT_NO_FFI', '1');
    expect(enginesMax({ DMKIT_ENGINES: '3' }, { tls: false })).toBe(0);
  });

  test.each(['', '-1', 'two', '1.5', '1000'])('not %j of them', (asked) => {
    expect(() => enginesMax({ DMKIT_ENGINES: asked }, { tls: false })).toThrow(
      expect.objectContaining({ code: 'ENGINES_NUMBER', errno: 'EINVAL' }),
    );
  });
});
