import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { FileDevice } from '../../src/device/file.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { system } from '../../src/lib/system.ts';
import { deviceSuite } from '../support/device-suite.ts';

deviceSuite('memory', async () => ({ device: new MemoryDevice(4 * 2 ** 20), cleanup() {} }));

async function makeFile() {
  const directory = fs.mkdtempSync(join(tmpdir(), 'dmkit-suite-'));
  const path = join(directory, 'disk.img');
  fs.writeFileSync(path, new Uint8Array(6 * 2 ** 20).fill(0x5a));
  return { device: await FileDevice.open(path, 'rw'), cleanup: () => fs.rmSync(directory, { recursive: true }) };
}

deviceSuite('a file', makeFile);

describe('without koffi', () => {
  beforeAll(() => vi.stubEnv('DMKIT_NO_FFI', '1'));
  afterAll(() => vi.unstubAllEnvs());
  test('there are no system calls', () => expect(system()).toBeUndefined());
  deviceSuite('a file', makeFile);
});
