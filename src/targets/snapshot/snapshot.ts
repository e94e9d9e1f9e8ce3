/**
 * `snapshot <origin> <COW device> <P|PO|N> <chunk sectors> [<#features> <feature>…]` (Linux `dm-snap.c`).
 *
 * A table loaded over the origin and COW device of an active snapshot takes over that snapshot's exceptions when it is
 * resumed (a handover): until then it owns none, reads no disk and shows chunk size 0; afterwards the old table is
 * Invalid, in memory only.
 */
import type { BlockDevice, ChangedExtent, Extent, Maybe } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { Parts } from '../../lib/parts.ts';
import { readHeader } from '../../stores/exception/header.ts';
import { PersistentStore } from '../../stores/exception/persistent.ts';
import { TransientStore } from '../../stores/exception/transient.ts';
import { type Bytes, bytes, SECTOR, type Sector, toBytes, toSectors } from '../../units.ts';
import { deviceWord, openArgument, refuse } from '../arguments.ts';
import type { DeviceRange, StatusKind, TableLine, Target, TargetType } from '../target.ts';
import { type Features, parseChunkSize, parseFeatures, parseStore } from './arguments.ts';
import { Exceptions } from './exceptions.ts';
import { cowUsers, type Member, type Origin, originOf } from './origins.ts';

const TYPE = 'snapshot';

export const snapshot: TargetType = {
  name: TYPE,
  version: [1, 16, 0],
  volatile: (args) =>
    args[2]?.[0]?.toUpperCase() === 'N' ? 'a transient snapshot (N) ends with the program that served it' : undefined,
  create: (line) => Snapshot.create(line),
};

class Snapshot implements Target, Member {
  readonly ranges: readonly DeviceRange[];
  readonly size: Bytes;
  readonly cow: BlockDevice;
  exceptions: Exceptions | undefined;
  active = false;
  #line: TableLine;
  #origin: Origin;
  #features: Features;
  #persistent: boolean;
  #overflow: boolean;
  #shift: number;
  /** The table whose exceptions this one takes over when it is resumed. */
  #source: Snapshot | undefined;
  /** The table that waits to take over from this one. */
  #destination: Snapshot | undefined;
  #suspended = true;
  #suspending = false;

  static async create(line: TableLine): Promise<Snapshot> {
    const { args } = line;
    if (args.length < 4) throw refuse(TYPE, 'requires 4 or more arguments');
    const features = parseFeatures(TYPE, args.slice(4));
    const device = await openArgument(line, TYPE, args[0], 'r', 'Cannot get origin device');
    const cow = await openArgument(line, TYPE, args[1], 'rw', 'Cannot get COW device');
    if (cow === device) throw refuse(TYPE, 'COW device cannot be the same as origin device');
    const { persistent, overflow } = parseStore(TYPE, args[2]);
    const chunkSize = parseChunkSize(TYPE, args[3], persistent, [cow.blockSize, device.blockSize]);
    const origin = originOf(device);
    const target = new Snapshot(line, origin, cow, features, persistent, overflow);
    target.#register();
    try {
      if (target.#source) {
        target.#checkStart(target.#source.exceptions?.chunkBytes ?? SECTOR);
        return target;
      }
      await target.#checkStartOver(persistent, chunkSize);
      const store = persistent
        ? await PersistentStore.open(cow, chunkSize, device.blockSize)
        : new TransientStore(cow, chunkSize);
      target.#own(new Exceptions(store, device, cow));
      origin.sort();
      return target;
    } catch (error) {
      await target.close();
      throw error;
    }
  }

  private constructor(
    line: TableLine,
    origin: Origin,
    cow: BlockDevice,
    features: Features,
    persistent: boolean,
    overflow: boolean,
  ) {
    this.#line = line;
    this.#origin = origin;
    this.#features = features;
    this.#persistent = persistent;
    this.#overflow = overflow;
    // The kernel's target ignores where in its table it starts: sector s of the mapped device is sector s of the origin.
    this.#shift = toBytes(line.start);
    this.cow = cow;
    this.size = bytes(this.#shift + toBytes(line.length));
    this.ranges = [
      { device: origin.device, start: line.start, length: line.length },
      { device: cow, start: toSectors(bytes(0)), length: toSectors(cow.size) },
    ];
  }

  get canDiscard(): boolean {
    return this.#features.zeroesCow && this.cow.canDiscard && this.#origin.device.canDiscard;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.#live().read(at + this.#shift, into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.#live().write(at + this.#shift, from, start, length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    return this.#live().writeZeroes(at + this.#shift, length, mayUnmap);
  }

  discard(at: Bytes, length: number): Maybe {
    const exceptions = this.#live();
    if (!this.#features.passDown) return exceptions.discard(at + this.#shift, length);
    const parts = new Parts();
    for (const operation of ['discard', 'passDown'] as const) {
      try {
        parts.add(exceptions[operation](at + this.#shift, length));
      } catch (error) {
        parts.fail(error);
      }
    }
    return parts.done();
  }

  /** Works on an invalid snapshot too; never reaches the origin. */
  flush(): Maybe {
    // An invalid snapshot has nothing left to make durable: it must not keep its device from getting another table.
    if (this.#suspending && !this.#valid) return;
    return this.exceptions ? this.exceptions.flush() : this.cow.flush();
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    return this.#live().extents(at + this.#shift, length);
  }

  changed(at: Bytes, length: number): ChangedExtent[] {
    return this.#live().changed(at + this.#shift, length);
  }

  status(kind: StatusKind): string {
    const origin = deviceWord(this.#origin.device);
    const cow = deviceWord(this.cow);
    const overflowed = this.exceptions?.overflowed ?? false;
    if (kind === 'info') return this.#state();
    if (kind === 'measure')
      return `target_name=snapshot,target_version=1.16.0,snap_origin_name=${origin},snap_cow_name=${cow},snap_valid=${this.#valid ? 'y' : 'n'},snap_merge_failed=n,snapshot_overflowed=${overflowed ? 'y' : 'n'};`;
    // The letter is the store's, which a handover brings along; the overflow option is this table's.
    const persistent = this.exceptions?.store.persistent ?? this.#persistent;
    const letter = persistent ? (this.#overflow ? 'PO' : 'P') : 'N';
    const { zeroesCow, passDown } = this.#features;
    const features = zeroesCow
      ? passDown
        ? ' 2 discard_zeroes_cow discard_passdown_origin'
        : ' 1 discard_zeroes_cow'
      : '';
    return `${origin} ${cow} ${letter} ${this.exceptions?.store.layout.chunkSize ?? 0}${features}`;
  }

  presuspend(): void {
    this.#suspending = true;
  }

  presuspendUndo(): void {
    this.#suspending = false;
  }

  async postsuspend(): Promise<void> {
    this.#suspended = true;
    await this.exceptions?.drain();
  }

  async preresume(): Promise<void> {
    if (this.#destination)
      throw new DmError(
        'HANDOVER',
        'EINVAL',
        'Cannot resume the snapshot: another table waits to take over its exceptions',
        {
          hint: 'resume the device with that table first, or clear it',
        },
      );
    let known = this.active ? this.size : 0;
    if (this.#source) {
      if (!this.#source.#suspended)
        throw new DmError('HANDOVER', 'EINVAL', 'Cannot take over exceptions from a snapshot that is not suspended', {
          hint: 'suspend the device with the old table, then resume again',
        });
      known = this.#source.size;
      this.#takeOver(this.#source);
    }
    // From here on writers of the origin copy; those that passed before, where nobody copied, end first.
    this.active = true;
    if (known < this.size) await this.#origin.settled();
  }

  resume(): void {
    this.#suspended = false;
    this.#suspending = false;
  }

  async revert(): Promise<void> {
    if (!this.exceptions) throw this.#noExceptions();
    await this.exceptions.reset(() => this.#origin.settled());
  }

  async close(): Promise<void> {
    if (this.#source) this.#source.#destination = undefined;
    if (this.#destination) {
      // Nobody is left to take over from: invalid in memory, the store on disk stays as it is.
      this.#destination.#source = undefined;
      this.#destination = undefined;
    }
    // No more copies; but nobody else may open the store before this one has ended with it.
    this.active = false;
    await this.exceptions?.close();
    this.#unregister();
  }

  get #valid(): boolean {
    return this.exceptions ? this.exceptions.store.valid : this.#source !== undefined;
  }

  #state(): string {
    if (!this.#valid) return 'Invalid';
    if (!this.exceptions) return `0/${toSectors(this.cow.size)} 0`;
    if (this.exceptions.overflowed) return 'Overflow';
    const { allocated, total, metadata } = this.exceptions.store.usage();
    return `${allocated}/${total} ${metadata}`;
  }

  /** Before anything is written, since a refused table leaves the disk as it was. */
  async #checkStartOver(persistent: boolean, chunkSize: Sector): Promise<void> {
    if (this.#shift === 0) return;
    const found = persistent && (await readHeader(this.cow, chunkSize, this.#origin.device.blockSize));
    this.#checkStart(found ? found.layout.chunkBytes : toBytes(chunkSize));
  }

  #checkStart(chunkBytes: number): void {
    if (this.#shift % chunkBytes !== 0)
      throw refuse(
        TYPE,
        `The target starts at sector ${this.#line.start}, which is no multiple of its chunk size of ${chunkBytes / SECTOR} sectors`,
      );
  }

  #live(): Exceptions {
    if (!this.exceptions) throw this.#noExceptions();
    return this.exceptions;
  }

  #noExceptions(): DmError {
    return new DmError('SNAPSHOT_INVALID', 'EIO', 'The snapshot is invalid: its exceptions belong to another table');
  }

  #own(exceptions: Exceptions): void {
    this.exceptions = exceptions;
    exceptions.overflows = this.#overflow && exceptions.store.persistent;
    exceptions.onInvalid = () => this.#line.event();
  }

  #takeOver(source: Snapshot): void {
    const { exceptions } = source;
    source.exceptions = undefined;
    source.active = false;
    source.#destination = undefined;
    this.#source = undefined;
    if (exceptions) this.#own(exceptions);
    this.#origin.sort();
  }

  /** The kernel's rules for a second table over one COW device (`__validate_exception_handover`). */
  #register(): void {
    const others = this.#origin.members.filter((member) => member.cow === this.cow) as Snapshot[];
    const failed = (why: string) =>
      refuse(TYPE, `Unable to pair the COW device ${this.cow.name} for a handover: ${why}`);
    if (others.length > 1) throw failed('two tables use it already');
    if (others.length === 1 && !others[0].active)
      throw failed('the table that uses it was never resumed, or is being removed');
    const user = cowUsers.get(this.cow);
    if (user && user !== this.#origin) throw failed(`a snapshot of ${user.device.name} uses it`);
    this.#source = others[0];
    if (this.#source) this.#source.#destination = this;
    cowUsers.set(this.cow, this.#origin);
    this.#origin.add(this);
  }

  #unregister(): void {
    this.#origin.remove(this);
    if (!this.#origin.members.some((member) => member.cow === this.cow)) cowUsers.delete(this.cow);
  }
}
