/** A file as a disk, for the tests of one file. The variables are those of the test that runs. */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, vi } from 'vitest';
import { FileDevice } from '../../src/device/file.ts';
import { DmError } from '../../src/errors.ts';
import { bytes } from '../../src/units.ts';

export let directory: string;
export let path: string;
export let device: FileDevice | undefined;

/** To be called once by a file of tests: each has its file anew. */
export function useFile(): void {
  beforeEach(() => {
    directory = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'dmkit-file-')));
    path = join(directory, 'disk.img');
  });
  afterEach(async () => {
    vi.restoreAllMocks();
    vi.unstubAllEnvs();
    await device?.close();
    device = undefined;
    fs.rmSync(directory, { recursive: true });
  });
}

export function make(size: number, fill?: number): void {
  fs.writeFileSync(path, fill === undefined ? '' : new Uint8Array(size).fill(fill));
  fs.truncateSync(path, size);
}

export async function open(mode: 'r' | 'rw', at = path): Promise<FileDevice> {
  device = await FileDevice.open(at, mode);
  return device;
}

export async function read(at: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length);
  await device!.read(bytes(at), into, 0, length);
  return into;
}

export async function failure(operation: () => unknown): Promise<DmError> {
  try {
    await operation();
  } catch (error) {
    expect(error).toBeInstanceOf(DmError);
    return error as DmError;
  }
  return expect.fail('it succeeded');
}
