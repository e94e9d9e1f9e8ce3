import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isNbdUri, type NbdAddress, parseNbdUri, printNbdUri } from './uri.ts';

/** Without half a surrogate pair, which has no UTF-8. */
const wellFormed = (text: string) => !/\p{Surrogate}/u.test(text);

describe('NBD URIs', () => {
  it.each<[string, NbdAddress, string]>([
    ['nbd://example.com/disk', { kind: 'tcp', host: 'example.com', port: 10809, exportName: 'disk' }, ''],
    ['nbd://example.com', { kind: 'tcp', host: 'example.com', port: 10809, exportName: '' }, 'nbd://example.com/'],
    ['nbd://example.com//disk', { kind: 'tcp', host: 'example.com', port: 10809, exportName: '/disk' }, ''],
    [
      'NBD://EXAMPLE.com:10809/a',
      { kind: 'tcp', host: 'example.com', port: 10809, exportName: 'a' },
      'nbd://example.com/a',
    ],
    ['nbd://[::1]:99/a%20b', { kind: 'tcp', host: '::1', port: 99, exportName: 'a b' }, ''],
    ['nbd:///a', { kind: 'tcp', host: 'localhost', port: 10809, exportName: 'a' }, 'nbd://localhost/a'],
    ['nbd+unix:///disk?socket=/run/a%20b', { kind: 'unix', socket: '/run/a b', exportName: 'disk' }, ''],
    ['nbd+unix://?socket=%2Frun%2Fs', { kind: 'unix', socket: '/run/s', exportName: '' }, 'nbd+unix:///?socket=/run/s'],
    [
      'nbds://host:99/d?tls-certificates=/etc/pki/a%20b&tls-hostname=other',
      {
        kind: 'tcp',
        host: 'host',
        port: 99,
        exportName: 'd',
        tls: { certificates: '/etc/pki/a b', hostname: 'other' },
      },
      '',
    ],
    ['nbds://host/d', { kind: 'tcp', host: 'host', port: 10809, exportName: 'd', tls: {} }, ''],
    [
      'nbds+unix:///d?tls-certificates=/c&socket=/s',
      { kind: 'unix', socket: '/s', exportName: 'd', tls: { certificates: '/c' } },
      'nbds+unix:///d?socket=/s&tls-certificates=/c',
    ],
    ['nbd+unix:///vg/lv?socket=/s', { kind: 'unix', socket: '/s', exportName: 'vg/lv' }, ''],
  ])('reads %s', (text, address, canonical) => {
    expect(parseNbdUri(text)).toEqual(address);
    expect(printNbdUri(address)).toBe(canonical || text);
  });

  it.each([
    ['http://example.com/', /scheme is "http"/],
    ['nbd:example', /no NBD URI/],
    ['nbd+unix:///disk', /names no socket/],
    ['nbd+unix:///disk?socket=', /"socket" is empty/],
    ['nbd+unix:///d?socket=/a&socket=/b', /two values for "socket"/],
    ['nbd+unix://host/d?socket=/a', /no host/],
    ['nbd+unix:///d?socket=/a%00b', /NUL/],
    [`nbd+unix:///d?socket=/${'x'.repeat(107)}`, /108 bytes/],
    ['nbd://host/d?socket=/a', /parameter "socket"/],
    ['nbd+unix:///d?tls-type=psk&socket=/a', /parameter "tls-type"/],
    ['nbd://host/d?tls-certificates=/c', /parameter "tls-certificates"/],
    ['nbds://host/d?tls-verify-peer=0', /parameter "tls-verify-peer"/],
    ['nbds+unix:///d?tls-certificates=/c', /names no socket/],
    ['nbds://host/d?tls-certificates=/c&tls-certificates=/d', /two values/],
    ['nbds://host/d?tls-certificates', /is empty/],
    ['nbd://host:0/d', /port 0/],
    ['nbd://host:65536/d', /port 65536/],
    ['nbd://user@host/d', /no host and port/],
    ['nbd://host/%zz', /bad percent escape/],
    ['nbd://host/a%00', /NUL/],
    [`nbd://host/${'x'.repeat(4097)}`, /longer than 4096/],
  ])('refuses %s', (text, message) => {
    expect(() => parseNbdUri(text)).toThrow(expect.objectContaining({ code: 'NBD_URI', errno: 'EINVAL' }));
    expect(() => parseNbdUri(text)).toThrow(message);
  });

  it('prints every address so that it reads back the same', () => {
    const name = fc
      .string({ unit: 'binary', maxLength: 40 })
      .filter((text) => !text.includes('\0') && wellFormed(text));
    const path = name
      .filter((text) => text !== '' && Buffer.byteLength(text) < 107)
      .map((text) => `/${text}`.slice(0, 107));
    const word = name.filter((text) => text !== '');
    const tls = fc.option(fc.record({ certificates: word, hostname: word }, { requiredKeys: [] }), { nil: undefined });
    const tcp = fc.record({
      kind: fc.constant('tcp' as const),
      host: fc.constantFrom('localhost', '10.0.0.1', '::1', 'fe80::1%eth0', 'a-b.example'),
      port: fc.integer({ min: 1, max: 65535 }),
      exportName: name,
    });
    const unix = fc.record({
      kind: fc.constant('unix' as const),
      socket: path.filter((text) => Buffer.byteLength(text) <= 107 && wellFormed(text)),
      exportName: name,
    });
    fc.assert(
      fc.property(fc.oneof(tcp, unix), tls, (where, encrypted) => {
        const address = encrypted ? { ...where, tls: encrypted } : where;
        const text = printNbdUri(address);
        expect(isNbdUri(text)).toBe(true);
        expect(parseNbdUri(text)).toEqual(address);
      }),
    );
  });
});
