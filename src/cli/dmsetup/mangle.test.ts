import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type ManglingMode, mangle, unmangle } from './mangle.ts';

test.each<[string, ManglingMode, string]>([
  ['plain', 'auto', 'plain'],
  ['a#b+c-d.e:f=g@h_I9', 'auto', 'a#b+c-d.e:f=g@h_I9'],
  ['sp ace', 'auto', 'sp\\x20ace'],
  ['x\\x20y', 'auto', 'x\\x20y'],
  ["it's", 'auto', 'it\\x27s'],
  ['back\\slash', 'auto', 'back\\x5cslash'],
  ['end\\', 'auto', 'end\\x5c'],
  ['not\\xzz', 'auto', 'not\\xzz'],
  ['hé', 'auto', 'h\\xc3\\xa9'],
  ['x\\x20y', 'hex', 'x\\x5cx20y'],
  ['sp ace', 'none', 'sp ace'],
])('%j in mode %s is stored as %j', (typed, mode, stored) => {
  expect(mangle(typed, 'name', mode)).toBe(stored);
});

test.each([
  ['mix ed\\x20y', 'contains mixed mangled and unmangled characters'],
  ['mix\\x20ed y', 'contains mixed mangled and unmangled characters'],
  ['short\\x4', 'contains mixed mangled and unmangled characters'],
  ['x\\x5cx20', 'seems to be mangled more than once'],
  [' '.repeat(32), 'Mangled form of the name too long'],
])('%j is refused', (typed, message) => {
  expect(() => mangle(typed, 'name', 'auto')).toThrow(message);
});

test('a uuid may be one byte longer than a name', () => {
  expect(mangle('u'.repeat(128), 'UUID', 'auto')).toHaveLength(128);
  expect(() => mangle('n'.repeat(128), 'name', 'auto')).toThrow('too long');
});

test.each<[string, ManglingMode, string]>([
  ['sp\\x20ace', 'auto', 'sp ace'],
  ['sp\\x20ace', 'hex', 'sp ace'],
  ['sp\\x20ace', 'none', 'sp\\x20ace'],
  ['h\\xc3\\xa9', 'auto', 'hé'],
  ['odd\\q', 'auto', 'odd\\q'],
])('%j in mode %s is shown as %j', (stored, mode, shown) => {
  expect(unmangle(stored, 'name', mode)).toBe(shown);
});

test('a stored byte that should be mangled cannot be shown', () => {
  expect(() => unmangle('raw sp', 'name', 'auto')).toThrow(
    'The name "raw sp" should be mangled but it contains blacklisted characters.',
  );
});

test('what was mangled is shown as it was typed', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 8 }), (typed) => {
      const stored = mangle(typed, 'UUID', 'hex');
      expect(stored).toMatch(/^[0-9A-Za-z#+\-.:=@_\\]*$/);
      expect(unmangle(stored, 'UUID', 'hex')).toBe(typed);
    }),
  );
});
