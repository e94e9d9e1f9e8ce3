/** One run of dmsetup: its options, the mapper, and the ways in which operations are called, named and reported. */
import { existsSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { type Control, type DeviceInfo, type DeviceRef, DmError, type Errno, errnoText } from '../../api/index.ts';
import type { CommandIo } from '../command-io.ts';
import { CommandFailure } from '../failure.ts';
import { deviceOfPath } from './device-path.ts';
import { MangleFailure, mangle, NAME_MAX, type NameKind, unmangle } from './mangle.ts';
import { leadingInteger, type Options } from './options.ts';

/** The word between `device-mapper:` and `ioctl`. */
export type Operation =
  | 'clear'
  | 'create'
  | 'deps'
  | 'info'
  | 'message'
  | 'names'
  | 'reload'
  | 'remove'
  | 'remove_all'
  | 'rename'
  | 'resume'
  | 'setgeometry'
  | 'status'
  | 'suspend'
  | 'table'
  | 'target-version'
  | 'version'
  | 'versions'
  | 'waitevent';

/** A device as it was named to us, for the mapper and for the error line. */
export interface Given {
  readonly ref: DeviceRef;
  /** Stored form; empty if another way was used. */
  readonly name: string;
  readonly uuid: string;
  /** `(MAJ:MIN)`, or empty. */
  readonly number: string;
}

export const byName = (name: string): Given => ({ ref: { name }, name, uuid: '', number: '' });

export type Sleep = (ms: number) => Promise<void>;

export class Session {
  readonly io: CommandIo;
  readonly options: Options;
  /** Milliseconds. */
  readonly sleep: Sleep;
  #control: Promise<Control> | undefined;

  constructor(io: CommandIo, options: Options, sleep: Sleep) {
    this.io = io;
    this.options = options;
    this.sleep = sleep;
  }

  get inactive() {
    return { inactive: this.options.has('inactive') };
  }

  get suspendOptions() {
    return { noflush: this.options.has('noflush'), nolockfs: this.options.has('nolockfs') };
  }

  print(text: string): void {
    this.io.stdout.write(text);
  }

  printError(text: string): void {
    this.io.stderr.write(text);
  }

  control(): Promise<Control> {
    this.#control ??= this.io.control();
    return this.#control;
  }

  /** Calls the mapper. Its refusal becomes the line that dmsetup prints, and what we know beyond that. */
  async call<T>(operation: Operation, given: Given, run: (control: Control) => Promise<T>): Promise<T> {
    const control = await this.control();
    try {
      return await run(control);
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      throw new OperationFailure(operation, given, error);
    }
  }

  /** As `call`, for the commands that say of a missing device only that it does not exist. */
  async callExisting<T>(operation: Operation, given: Given, run: (control: Control) => Promise<T>): Promise<T> {
    try {
      return await this.call(operation, given, run);
    } catch (error) {
      if (error instanceof OperationFailure && error.errno === 'ENXIO')
        throw new CommandFailure('Device does not exist.');
      throw error;
    }
  }

  list(options: { inactive: boolean } = this.inactive): Promise<DeviceInfo[]> {
    return this.call('names', byName(''), (control) => control.list(options));
  }

  info(given: Given): Promise<DeviceInfo> {
    return this.callExisting('info', given, (control) => control.info(given.ref, this.inactive));
  }

  /** Whether -u or -j and -m stand for the device argument. */
  get namedByOption(): boolean {
    return this.options.has('uuid') || this.options.has('major');
  }

  /** The device that the argument names, else -u, else -j and -m. */
  async device(argument: string | undefined): Promise<Given> {
    if (argument !== undefined) return this.#named(argument);
    const uuid = this.options.value('uuid');
    if (uuid !== undefined) {
      const stored = this.stored(uuid, 'UUID');
      return { ref: { uuid: stored }, name: '', uuid: stored, number: '' };
    }
    if (!this.options.has('major')) throw new CommandFailure('No device specified.');
    const major = leadingInteger(this.options.value('major')!);
    const minor = leadingInteger(this.options.value('minor')!);
    return { ref: { major, minor }, name: '', uuid: '', number: `(${major}:${minor})` };
  }

  async #named(argument: string): Promise<Given> {
    if (argument.includes('/')) {
      const name = await deviceOfPath(argument, this.io, () => this.control());
      if (name !== undefined) return byName(name);
      // Of a path that leads to something else, only the last word is named.
      const shown = existsSync(resolve(this.io.cwd, argument)) ? basename(argument) : argument;
      throw new CommandFailure(`Device ${shown} not found`);
    }
    return byName(this.storedName(argument));
  }

  storedName(typed: string): string {
    if (Buffer.byteLength(typed) > NAME_MAX) throw new CommandFailure(`Name "${typed}" too long.`);
    return this.stored(typed, 'name');
  }

  stored(typed: string, kind: NameKind): string {
    try {
      return mangle(typed, kind, this.options.mangling);
    } catch (error) {
      if (!(error instanceof MangleFailure) || !error.announced) throw error;
      const what = kind.startsWith('new ')
        ? `new device ${kind.slice(4).toLowerCase()}`
        : `device ${kind.toLowerCase()}`;
      const stop = kind.startsWith('new ') ? '' : '.';
      throw new CommandFailure(`${error.message}\nFailed to mangle ${what} "${typed}"${stop}`);
    }
  }

  shown(stored: string, kind: NameKind = 'name'): string {
    return unmangle(stored, kind, this.options.mangling);
  }
}

/** The kernel's refusal, in dmsetup's words, with the reason that the kernel would have logged. */
export class OperationFailure extends CommandFailure {
  readonly errno: Errno;

  constructor(operation: Operation, { name, uuid, number }: Given, error: DmError) {
    super(operationLines(operation, `${name} ${uuid}${number}`, error));
    this.errno = error.errno;
  }
}

function operationLines(operation: Operation, device: string, error: DmError): string {
  // Who interrupts a command knows it.
  if (error.errno === 'EINTR') return '';
  const lines = [`device-mapper: ${operation} ioctl on ${device} failed: ${errnoText(error.errno)}`];
  if (operation === 'reload' || operation === 'resume') {
    lines.push(`  reason: ${oneLine(error.message)}`);
    if (error.hint) lines.push(`  hint: ${oneLine(error.hint)}`);
  }
  return lines.join('\n');
}

const oneLine = (text: string) => text.replace(/\s*\n\s*/g, '; ');
