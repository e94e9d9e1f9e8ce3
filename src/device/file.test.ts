import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { bytes } from '../units.ts';
import { FileDevice } from './file.ts';

let directory: string;
let path: string;

beforeEach(() => {
  directory = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'dmkit-file-')));
  path = join(directory, 'disk.img');
});
afterEach(() => {
  vi.unstubAllEnvs();
  fs.rmSync(directory, { recursive: true });
});

function make(size: number): void {
  fs.writeFileSync(path, '');
  fs.truncateSync(path, size);
}

describe.each([
  ['with koffi', '0'],
  ['without koffi', '1'],
])('a file %s', (_title, noFfi) => {
  beforeEach(() => vi.stubEnv('DMKIT_NO_FFI', noFfi));

  test('reads back what was written, also beyond 2^43 bytes', async () => {
    make(16 * 2 ** 40 - 8192);
    const device = await FileDevice.open(path, 'rw');
    for (const at of [0, 2 ** 31 - 512, 2 ** 32 - 512, 2 ** 32 + 512, 2 ** 43 + 512, 16 * 2 ** 40 - 8192 - 1024]) {
      const data = new Uint8Array(2048).fill((at / 512) % 251 || 7);
      await device.write(bytes(at), data, 512, 1024);
      const back = new Uint8Array(2048);
      await device.read(bytes(at), back, 1024, 1024);
      expect(back.subarray(1024)).toEqual(data.subarray(512, 1536));
      expect(back.subarray(0, 1024)).toEqual(new Uint8Array(1024));
    }
    await device.flush();
    await device.close();
  });
});
