/** From a word in a table to a disk: which back end serves it, and which words mean the same disk. */
import { resolve } from 'node:path';
import { DmError } from '../errors.ts';
import type { BlockDevice, Mode } from './block-device.ts';
import { FileDevice } from './file.ts';
import { KernelDisk } from './kernel-disk.ts';
import { deviceNumber, locate } from './locate.ts';
import { nbdBackend } from './nbd.ts';
import { isForbidden } from './posix-device.ts';

export type { Mode };

/** A kind of disk. A new one is one file beside this one and one entry in `backends`. */
export interface Backend {
  matches(argument: string): boolean;
  /** The same text for every argument that leads to the same disk. Throws DmError when it leads to none. */
  identify(argument: string): Promise<string>;
  open(argument: string, mode: Mode): Promise<BlockDevice>;
}

const URI = /^[a-z][a-z0-9+.-]*:\/\//i;

/** Paths of regular files and block device nodes, and `major:minor` of kernel block devices. */
const localBackend: Backend = {
  matches: (argument) => !URI.test(argument),
  async identify(argument) {
    const { stat } = await locate(argument);
    return stat.isBlockDevice() ? `disk ${deviceNumber(stat)}` : `file ${stat.dev}:${stat.ino}`;
  },
  async open(argument, mode) {
    const { stat } = await locate(argument);
    return stat.isBlockDevice() ? KernelDisk.open(argument, mode) : FileDevice.open(argument, mode);
  },
};

/** The first that matches serves. */
const backends: readonly Backend[] = [nbdBackend, localBackend];

function backendOf(argument: string): Backend {
  const backend = backends.find((each) => each.matches(argument));
  if (backend) return backend;
  throw new DmError('UNKNOWN_SCHEME', 'ENODEV', `Cannot open ${argument}: no back end for ${URI.exec(argument)?.[0]}`, {
    hint: 'name a file, a block device, or an nbd:// or nbd+unix:// URI',
  });
}

/** Opens one disk. A disk that must not be written is opened to be read, whatever `mode` says, and is then `readOnly`. */
export async function openDisk(argument: string, mode: Mode): Promise<BlockDevice> {
  const backend = backendOf(argument);
  try {
    return await backend.open(argument, mode);
  } catch (error) {
    if (mode === 'r' || !isForbidden(error)) throw error;
    return backend.open(argument, 'r');
  }
}

/** Finds disks by any of their names and opens them by their identity: what the mapper asks for. */
export class Disks {
  /** Identity -> an argument that led to it last. */
  #arguments = new Map<string, string>();

  /** Relative paths start from `directory`, by default the process's own. */
  async identify(argument: string, directory = '.'): Promise<string> {
    const local = !URI.test(argument) && !/^\d+:\d+$/.test(argument) && argument !== '';
    const absolute = local ? resolve(directory, argument) : argument;
    const identity = await backendOf(absolute).identify(absolute);
    this.#arguments.set(identity, absolute);
    return identity;
  }

  /** Opens what `identify` named. */
  open(identity: string, mode: Mode): Promise<BlockDevice> {
    return openDisk(this.#arguments.get(identity)!, mode);
  }
}
