import type { BlockDevice, Extent, Maybe } from '../device/block-device.ts';
import { ByteAccess } from '../device/byte-access.ts';
import { DmError } from '../errors.ts';
import { WriteLog } from '../stores/log-writes/write-log.ts';
import { type Bytes, bytes, SECTOR, toBytes } from '../units.ts';
import { deviceWord, openArgument, refuse, tableMode } from './arguments.ts';
import type { DeviceRange, StatusKind, Target, TargetType } from './target.ts';

/**
 * `log-writes <device> <log device>`: passes everything on and keeps a log of what was written, in the order in which
 * it became safe (Linux `dm-log-writes.c`).
 */
export const logWrites: TargetType = {
  name: 'log-writes',
  version: [1, 1, 0],
  volatile: () => 'its log would have begun anew: load the table again where that is wanted',
  async create(line) {
    const { args, start, length } = line;
    if (args.length < 2) throw refuse('log-writes', 'Invalid argument count');
    const device = await openArgument(line, 'log-writes', args[0], tableMode(line));
    const log = await openArgument(line, 'log-writes', args[1], tableMode(line), 'Log device lookup failed');
    if (log === device) throw refuse('log-writes', 'Log device cannot be the same as the device');
    return new LogWrites({ device, start, length }, log);
  },
};

class LogWrites implements Target {
  readonly ranges: readonly DeviceRange[];
  /** Its own: one that cannot discard is asked only to be logged. */
  readonly canDiscard = true;
  readonly #device: BlockDevice;
  readonly #logDevice: BlockDevice;
  readonly #log: WriteLog;
  /** The start of the target: sector s of the mapped device is sector s of the device. */
  readonly #shift: Bytes;
  /** Changes of whole blocks of the device, the unit of the log. */
  readonly #changes: Pick<BlockDevice, 'write' | 'discard' | 'writeZeroes'>;
  /** Has been live, so that there is a log to be ended. */
  #begun = false;
  #suspending = false;

  constructor(range: DeviceRange, logDevice: BlockDevice) {
    const { device, start } = range;
    this.ranges = [range];
    this.#device = device;
    this.#logDevice = logDevice;
    this.#log = new WriteLog(logDevice, device.blockSize);
    this.#shift = toBytes(start);
    const whole = new LoggedDevice(device, this.#log);
    this.#changes = device.blockSize === SECTOR ? whole : new ByteAccess(whole, device.blockSize);
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.#device.read(this.#below(at), into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.#changes.write(this.#below(at), from, start, length);
  }

  flush(): Maybe {
    // A suspend's own flush is none that somebody has asked for.
    if (this.#suspending || !this.#log.enabled) return this.#device.flush();
    const { completed } = this.#log;
    const wait = this.#device.flush();
    if (wait) return wait.then(() => this.#log.flushed(completed));
    return this.#log.flushed(completed);
  }

  discard(at: Bytes, length: number): Maybe {
    return this.#changes.discard(this.#below(at), length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    return this.#changes.writeZeroes(this.#below(at), length, mayUnmap);
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    return this.#device.extents(this.#below(at), length);
  }

  status(kind: StatusKind): string {
    if (kind === 'table') return `${deviceWord(this.#device)} ${deviceWord(this.#logDevice)}`;
    if (kind === 'measure') return '';
    const { entries, lastSector, enabled } = this.#log;
    return `${entries} ${lastSector}${enabled ? '' : ' logging_disabled'}`;
  }

  async message(words: readonly string[]): Promise<string> {
    if (words.length !== 2)
      throw badMessage(`Invalid log-writes message arguments, expect 2 arguments, got ${words.length}`);
    if (words[0].toLowerCase() !== 'mark')
      throw badMessage(`Unrecognised log writes target message received: ${words[0]}`);
    await this.#log.mark(words[1]);
    return '';
  }

  presuspend(): void {
    this.#suspending = true;
  }

  presuspendUndo(): void {
    this.#suspending = false;
  }

  resume(): void {
    this.#suspending = false;
    this.#begun = true;
  }

  async close(): Promise<void> {
    if (!this.#begun) return;
    await this.#log.end();
    // A log that cannot be ended well is no reason to keep the device.
    await (async () => this.#logDevice.flush())().catch(() => {});
  }

  #below(at: Bytes): Bytes {
    return bytes(at + this.#shift);
  }
}

/** The device; what it has done is told to the log. What failed is not. */
class LoggedDevice implements Pick<BlockDevice, 'size' | 'read' | 'write' | 'discard' | 'writeZeroes'> {
  readonly #device: BlockDevice;
  readonly #log: WriteLog;

  constructor(device: BlockDevice, log: WriteLog) {
    this.#device = device;
    this.#log = log;
  }

  get size(): Bytes {
    return this.#device.size;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.#device.read(at, into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    const wait = this.#device.write(at, from, start, length);
    if (wait) return wait.then(() => this.#log.wrote(at, from, start, length));
    return this.#log.wrote(at, from, start, length);
  }

  discard(at: Bytes, length: number): Maybe {
    const wait = this.#device.canDiscard ? this.#device.discard(at, length) : undefined;
    if (wait) return wait.then(() => this.#log.discarded(at, length));
    return this.#log.discarded(at, length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    const wait = this.#device.writeZeroes(at, length, mayUnmap);
    if (wait) return wait.then(() => this.#log.zeroed(at, length));
    return this.#log.zeroed(at, length);
  }
}

const badMessage = (text: string) => new DmError('MESSAGE_INVALID', 'EINVAL', text);
