/**
 * What `snapshot` and `snapshot-merge` have in common: the same words in a table, exceptions that a second table over
 * the same origin and COW device takes over when it is resumed (a handover), the same status line.
 *
 * Until a handover the second table owns no exceptions, reads no disk and shows chunk size 0; afterwards the first one
 * is Invalid, in memory only. Linux `dm-snap.c`: `snapshot_ctr`, `__validate_exception_handover`, `snapshot_preresume`.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { readHeader } from '../../stores/exception/header.ts';
import { PersistentStore } from '../../stores/exception/persistent.ts';
import { TransientStore } from '../../stores/exception/transient.ts';
import { type Bytes, bytes, SECTOR, toBytes, toSectors } from '../../units.ts';
import { deviceWord, refuse } from '../arguments.ts';
import type { DeviceRange, StatusKind, TableLine, TargetType } from '../target.ts';
import type { Features, SnapshotArguments } from './arguments.ts';
import { Exceptions } from './exceptions.ts';
import { cowUsers, type Member, type Origin, originOf } from './origins.ts';

export abstract class SnapshotTable implements Member {
  abstract readonly merging: boolean;
  readonly ranges: readonly DeviceRange[];
  readonly size: Bytes;
  readonly cow: BlockDevice;
  readonly origin: Origin;
  exceptions: Exceptions | undefined;
  active = false;
  /**
   * Bytes: the kernel's target ignores where in its table it starts, sector s of the mapped device is sector s of the
   * origin.
   */
  protected readonly shift: number;
  protected readonly features: Features;
  /** From presuspend on. */
  protected suspending = false;
  #type: TargetType;
  #line: TableLine;
  #arguments: SnapshotArguments;
  /** The table whose exceptions this one takes over when it is resumed. */
  #source: SnapshotTable | undefined;
  /** The table that waits to take over from this one. */
  #destination: SnapshotTable | undefined;
  #suspended = true;
  /** Another table has its exceptions. */
  #handedOver = false;

  constructor(type: TargetType, line: TableLine, args: SnapshotArguments) {
    this.#type = type;
    this.#line = line;
    this.#arguments = args;
    this.origin = originOf(args.origin);
    this.cow = args.cow;
    this.features = args.features;
    this.shift = toBytes(line.start);
    this.size = bytes(this.shift + toBytes(line.length));
    this.ranges = [
      { device: args.origin, start: line.start, length: line.length },
      { device: args.cow, start: toSectors(bytes(0)), length: toSectors(args.cow.size) },
    ];
  }

  /** Finds the table to take over from, else opens the store. Throws what refuses the table; nothing is held then. */
  async open(): Promise<this> {
    const { persistent, chunkSize } = this.#arguments;
    this.#register();
    try {
      if (this.#source) {
        this.#checkStart(this.#source.exceptions?.chunkBytes ?? SECTOR);
        return this;
      }
      await this.#checkStartOver();
      const store = persistent
        ? await PersistentStore.open(this.cow, chunkSize, this.origin.device.blockSize)
        : new TransientStore(this.cow, chunkSize);
      this.#own(new Exceptions(store, this.origin.device, this.cow));
      this.origin.sort();
      return this;
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  get spent(): boolean {
    return this.#handedOver;
  }

  get note(): string | undefined {
    return this.#handedOver ? 'another table took over its exceptions' : undefined;
  }

  get canDiscard(): boolean {
    return this.features.zeroesCow && this.cow.canDiscard && this.origin.device.canDiscard;
  }

  status(kind: StatusKind): string {
    const origin = deviceWord(this.origin.device);
    const cow = deviceWord(this.cow);
    if (kind === 'info') return this.state();
    if (kind === 'measure') {
      const flag = (set: boolean) => (set ? 'y' : 'n');
      const { name, version } = this.#type;
      const overflowed = this.exceptions?.overflowed ?? false;
      return `target_name=${name},target_version=${version.join('.')},snap_origin_name=${origin},snap_cow_name=${cow},snap_valid=${flag(this.valid)},snap_merge_failed=${flag(this.mergeFailed)},snapshot_overflowed=${flag(overflowed)};`;
    }
    // The letter is the store's, which a handover brings along; the overflow option is this table's.
    const persistent = this.exceptions?.store.persistent ?? this.#arguments.persistent;
    const letter = persistent ? (this.#arguments.overflow ? 'PO' : 'P') : 'N';
    const { zeroesCow, passDown } = this.features;
    const features = zeroesCow
      ? passDown
        ? ' 2 discard_zeroes_cow discard_passdown_origin'
        : ' 1 discard_zeroes_cow'
      : '';
    return `${origin} ${cow} ${letter} ${this.exceptions?.store.layout.chunkSize ?? 0}${features}`;
  }

  /** Counts the copies for what was written to the origin, as if each had been made at once. */
  async prestatus(): Promise<void> {
    await this.origin.drain().catch(() => {});
  }

  presuspend(): void {
    this.suspending = true;
  }

  presuspendUndo(): void {
    this.suspending = false;
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
    // Of the table that writers of the origin have copied for until now.
    let known = this.active ? this.size : 0;
    if (this.#source) {
      if (!this.#source.#suspended)
        throw new DmError('HANDOVER', 'EINVAL', 'Cannot take over exceptions from a snapshot that is not suspended', {
          hint: 'suspend the device with the old table, then resume again',
        });
      known = this.#source.merging ? 0 : this.#source.size;
    }
    // What was acknowledged before reaches the origin as others see it now.
    const changes = this.merging ? !this.active : known < this.size;
    if (changes) await this.origin.emptied();
    try {
      if (this.#source) await this.#takeOver(this.#source);
      // From here on writers of the origin copy; those that passed before, where nobody copied, end first.
      this.active = true;
    } finally {
      if (changes) this.origin.reopen();
    }
    if (known < this.size && !this.merging) await this.origin.settled();
  }

  resume(): void {
    this.#suspended = false;
    this.suspending = false;
  }

  async close(): Promise<void> {
    if (this.#source) this.#source.#destination = undefined;
    if (this.#destination) {
      // Nobody is left to take over from: invalid in memory, the store on disk stays as it is.
      this.#destination.#source = undefined;
      this.#destination = undefined;
    }
    // What was acknowledged while it was there has its copy.
    if (this.active) await this.origin.drain().catch(() => {});
    // No more copies; but nobody else may open the store before this one has ended with it.
    this.active = false;
    await this.exceptions?.close();
    this.#unregister();
  }

  protected get valid(): boolean {
    return this.exceptions ? this.exceptions.store.valid : this.#source !== undefined;
  }

  protected get mergeFailed(): boolean {
    return false;
  }

  /** Before another table takes over: rejects if the list of exceptions on disk is not known to be the one in memory. */
  protected async release(): Promise<void> {}

  protected live(): Exceptions {
    if (!this.exceptions)
      throw new DmError('SNAPSHOT_INVALID', 'EIO', 'The snapshot is invalid: its exceptions belong to another table');
    return this.exceptions;
  }

  protected state(): string {
    if (!this.valid) return 'Invalid';
    if (this.mergeFailed) return 'Merge failed';
    if (!this.exceptions) return `0/${toSectors(this.cow.size)} 0`;
    if (this.exceptions.overflowed) return 'Overflow';
    const { allocated, total, metadata } = this.exceptions.store.usage();
    return `${allocated}/${total} ${metadata}`;
  }

  /** Before anything is written, since a refused table leaves the disk as it was. */
  async #checkStartOver(): Promise<void> {
    if (this.shift === 0) return;
    const { persistent, chunkSize } = this.#arguments;
    const found = persistent && (await readHeader(this.cow, chunkSize, this.origin.device.blockSize));
    this.#checkStart(found ? found.layout.chunkBytes : toBytes(chunkSize));
  }

  #checkStart(chunkBytes: number): void {
    if (this.shift % chunkBytes !== 0)
      throw this.#refuse(
        `The target starts at sector ${this.#line.start}, which is no multiple of its chunk size of ${chunkBytes / SECTOR} sectors`,
      );
  }

  #own(exceptions: Exceptions): void {
    this.exceptions = exceptions;
    exceptions.overflows = this.#arguments.overflow && exceptions.store.persistent;
    exceptions.onInvalid = () => this.#line.event();
    exceptions.enlarge = () => this.#line.enlarge(this.cow);
  }

  async #takeOver(source: SnapshotTable): Promise<void> {
    await source.release();
    const { exceptions } = source;
    if (this.merging && exceptions) {
      // Copies for writers of the origin may have begun since the source was suspended. None begins from here on.
      source.active = false;
      try {
        await exceptions.drain();
      } catch (error) {
        source.active = true;
        throw error;
      }
    }
    if (source.merging && exceptions?.store instanceof PersistentStore) exceptions.store.resumeAllocating();
    source.exceptions = undefined;
    source.#handedOver = true;
    source.active = false;
    source.#destination = undefined;
    this.#source = undefined;
    if (exceptions) this.#own(exceptions);
    this.origin.sort();
  }

  /** The kernel's rules for a second table over one COW device, and for a merge beside another one. */
  #register(): void {
    const members = this.origin.members as readonly SnapshotTable[];
    const others = members.filter((member) => member.cow === this.cow);
    const failed = (why: string) =>
      this.#refuse(`Unable to pair the COW device ${this.cow.name} for a handover: ${why}`);
    if (others.length > 1) throw failed('two tables use it already');
    if (others.length === 1 && !others[0].active)
      throw failed('the table that uses it was never resumed, or is being removed');
    const user = cowUsers.get(this.cow);
    if (user && user !== this.origin) throw failed(`a snapshot of ${user.device.name} uses it`);
    if (this.merging) {
      const merging = members.find((member) => member.merging);
      if (merging) throw this.#refuse(`Already merging another snapshot into the origin: that on ${merging.cow.name}`);
      if (others[0]?.exceptions?.store.persistent === false)
        throw this.#refuse('Snapshot exception store does not support snapshot-merge');
    }
    this.#source = others[0];
    if (this.#source) this.#source.#destination = this;
    cowUsers.set(this.cow, this.origin);
    this.origin.add(this);
  }

  #unregister(): void {
    this.origin.remove(this);
    if (!this.origin.members.some((member) => member.cow === this.cow)) cowUsers.delete(this.cow);
  }

  #refuse(text: string) {
    return refuse(this.#type.name, text);
  }
}
