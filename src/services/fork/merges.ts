/**
 * Merges: what a fork changed goes back into its image, while the origin device is in use (Linux `snapshot-merge`).
 *
 *     1  the record says so, durably      a restart from here on: origin device = `snapshot-merge`, no fork device
 *     2  handover                         origin: load; suspend both; resume. The fork's device is removed
 *     3  followed                         the target merges by itself; its status is asked for now and then
 *     4  origin: `snapshot-origin` again  durably, so that no restart needs the COW file any more
 *     5  COW file deleted, record gone    and the origin device, if it was the last fork
 *
 * Killed at any moment, `recover` goes on where the saved state says. Until 4 the image alone is a mix of old and new.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { DmError } from '../../errors.ts';
import type { Lock } from '../../lib/lock.ts';
import type { TargetSpec } from '../../mapper/control.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import { SECTOR } from '../../units.ts';
import type { Emit } from '../events/event.ts';
import type { Dropped, MergeOptions, MergeProgress } from './fork-control.ts';
import type { Images } from './images.ts';
import { MergeBook } from './merge-book.ts';
import { checkMerge, type Mergeable } from './merge-check.ts';
import { deviceOf, exceptionsOn, isEmpty, isOver, lineOf, sizeOf, typeOf } from './merge-devices.ts';
import { exceptionsBy } from './merge-status.ts';
import type { ForkRecord, MergeRecord } from './records.ts';
import { mergeTable, originTable } from './tables.ts';

const PAUSE_MIN_MS = 5;
const PAUSE_MAX_MS = 250;
/** After something that was to be tidied up could not be. */
const RETRY_MS = 2000;

export interface MergesOptions {
  images: Images;
  /** Held while a fork comes or goes. */
  lock: Lock;
  /** Who has a device open, and how to end that, in words. */
  users?(name: string): Promise<string | undefined>;
  log?(line: string): void;
  /** Told of the end of a merge that its status line does not show. */
  emit?: Emit;
  /** Between two looks at the status. Rejects when `signal` fires. */
  pause?(ms: number, signal: AbortSignal): Promise<unknown>;
}

/** What is looked at: the merge, and the device it runs on, if that is there. */
interface Entry {
  readonly record: MergeRecord;
  readonly progress: MergeProgress;
  origin: MappedDevice | undefined;
  /** Somebody looks. */
  followed: boolean;
}

export class Merges {
  readonly #images: Images;
  readonly #lock: Lock;
  readonly #users: (name: string) => Promise<string | undefined>;
  readonly #log: (line: string) => void;
  readonly #emit: Emit;
  readonly #pause: (ms: number, signal: AbortSignal) => Promise<unknown>;
  readonly #book = new MergeBook();
  readonly #entries = new Map<ForkRecord, Entry>();
  readonly #stopping = new AbortController();
  readonly #following = new Set<Promise<void>>();

  constructor({ images, lock, users, log = () => {}, emit = () => {}, pause }: MergesOptions) {
    this.#images = images;
    this.#lock = lock;
    this.#users = users ?? (async () => undefined);
    this.#log = log;
    this.#emit = emit;
    this.#pause = pause ?? ((ms, signal) => delay(ms, undefined, { signal }));
  }

  /** See `ForkControl.merge`. */
  start(name: string, options: MergeOptions = {}): Promise<MergeProgress> {
    return this.#lock.run(async () => {
      const entry = [...this.#entries.values()].find(({ record }) => record.merging.name === name);
      if (entry) return this.#join(entry, options);
      const isThere = (await this.#images.mapper.list()).some((info) => info.name === name);
      const finished = this.#book.finished(name);
      if (!isThere && finished) return { ...finished };
      const found = await checkMerge(this.#images, name, options, this.#users);
      return this.#begin(found, options.keep ?? false);
    });
  }

  /** See `ForkControl.mergeProgress`. */
  progress(name: string, options: { since?: number } = {}, signal?: AbortSignal): Promise<MergeProgress> {
    return this.#book.progress(name, options, signal);
  }

  /**
   * Forgets a merge that has failed, when its origin device was taken away, so that nothing can go on with it by itself.
   * The COW file stays: it has what is not in the image yet. Undefined: there is no such merge.
   */
  async abandon(name: string): Promise<Omit<Dropped, 'name'> | undefined> {
    const entry = [...this.#entries.values()].find(({ record }) => record.merging.name === name);
    if (!entry) return undefined;
    const { record, progress } = entry;
    const device = deviceOf(this.#images, record);
    if (progress.state !== 'failed' || (device && typeOf(device) !== 'snapshot-origin'))
      throw new DmError('MERGING', 'EBUSY', `Cannot drop ${name}: it is being merged`, {
        hint:
          progress.state === 'failed'
            ? `repair what has stopped it: dmkit merge ${name}\nor give up, with the image half merged: dmkit dmsetup remove ${device!.storedName}; dmkit drop ${name}`
            : `wait for it: dmkit merge ${name}`,
      });
    const forgotten = await this.#images.forget(record, false);
    await this.#images.save();
    this.#end(entry, {});
    this.#book.outdate(name);
    return { ...forgotten, halfMerged: record.image };
  }

  /** A device was created, or has another name. */
  named(name: string): void {
    this.#book.outdate(name);
  }

  /** Whether one runs, or has not been tidied up, or has ended and is not forgotten. */
  known(name: string): 'running' | 'finished' | undefined {
    if (this.#images.mergingOf(name)) return 'running';
    return this.#book.find(name) && 'finished';
  }

  /** Of the merge that runs on this origin device. */
  on(origin: string): MergeProgress | undefined {
    return this.#book.on(origin);
  }

  /**
   * After a restart, with the devices it was given: follows the merges that go on, and ends those that were done. What was
   * found, in words. Never throws.
   */
  async recover(): Promise<string[]> {
    const told: string[] = [];
    for (const record of this.#images.records.filter(isMerging)) {
      const { name, cow } = record.merging;
      const entry = this.#enter(record);
      const device = deviceOf(this.#images, record);
      entry.origin = device;
      try {
        if (typeOf(device) === 'snapshot-origin' && (await isEmpty(this.#images.mapper, record))) {
          await this.#tidy(entry);
          told.push(`${name}: finished its merge into ${record.image}`);
        } else if (typeOf(device) === 'snapshot-merge') {
          told.push(`${name}: its merge into ${record.image} goes on`);
          this.#follow(entry);
        } else this.#fail(entry, device?.note ?? `no device has the table that merges ${cow}`);
      } catch (error) {
        this.#fail(entry, (error as Error).message);
      }
    }
    return told;
  }

  /** No merge is looked at any more; those that run go on by themselves, until their devices are closed. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#book.wake();
    await Promise.allSettled(this.#following);
  }

  async #begin({ fork, origin, image, cow, chunkSize, exceptions }: Mergeable, keep: boolean): Promise<MergeProgress> {
    const images = this.#images;
    const name = fork.storedName;
    const known = images.recordOf(await images.mapper.info({ name }), 'fork');
    const record = (known ?? { uuid: fork.uuid, role: 'fork', image }) as MergeRecord;
    record.merging = { name, cow, chunkSize, exceptions, keep };
    if (!known) images.records.push(record);
    const table = mergeTable(image, cow, origin.size, chunkSize);
    try {
      await images.intending(origin, table, fork, async () => {
        // What would not survive a restart is not begun.
        await images.save();
        await this.#handOver(fork, origin, image, table);
      });
    } catch (error) {
      delete (record as ForkRecord).merging;
      if (!known) images.remove(record);
      await images.save().catch(() => {});
      throw error;
    }
    const entry = this.#enter(record);
    entry.origin = origin;
    this.#log(`${name}: merging ${exceptions} chunks into ${image}`);
    this.#follow(entry);
    return { ...entry.progress };
  }

  /** The kernel's sequence. What fails leaves both devices as they were. */
  async #handOver(fork: MappedDevice, origin: MappedDevice, image: string, table: TargetSpec): Promise<void> {
    const { mapper } = this.#images;
    const [above, below] = [{ name: origin.storedName }, { name: fork.storedName }];
    const forkSuspended = fork.suspended;
    await mapper.load(above, [table]);
    await this.#images.holding(above.name, async () => {
      try {
        await mapper.suspend(above);
        await mapper.suspend(below);
        // What may have changed since it was looked at.
        if (fork.openCount > 0)
          throw new DmError('DEVICE_OPEN', 'EBUSY', `Cannot merge ${below.name}: it was opened meanwhile`, {
            hint: 'close it, and repeat the command',
          });
        if (fork.liveTable?.text('info')[0].text === 'Invalid')
          throw new DmError('SNAPSHOT_INVALID', 'EIO', `Cannot merge ${below.name}: it has become invalid`, {
            hint: `remove it: dmkit drop ${below.name}`,
          });
        await mapper.resume(above);
      } catch (error) {
        // A merge that was refused has the live table already.
        if (typeOf(origin) === 'snapshot-merge') await mapper.load(above, [originTable(image, origin.size)]);
        else await mapper.clear(above);
        await mapper.resume(above);
        if (!forkSuspended) await mapper.resume(below);
        throw error;
      }
    });
    // Someone may have opened it a moment ago, and reads errors from it until he goes.
    await mapper
      .remove(below)
      .catch(() => mapper.remove(below, { deferred: true }))
      // The merge runs: nothing may be undone any more.
      .catch((error: Error) => this.#log(error.message));
  }

  async #join(entry: Entry, { keep }: MergeOptions): Promise<MergeProgress> {
    const { record, progress } = entry;
    if (keep && !record.merging.keep) {
      record.merging.keep = true;
      await this.#images.save();
    }
    if (progress.state === 'failed') await this.#goOn(entry);
    return { ...progress };
  }

  /** After a failure, once its cause is gone. The target begins again when it is resumed. */
  async #goOn(entry: Entry): Promise<void> {
    const { record, progress } = entry;
    const { mapper } = this.#images;
    const { cow, chunkSize, name } = record.merging;
    this.#images.checkAllThere(record.image, `go on with the merge of ${name}`);
    const known = deviceOf(this.#images, record);
    const sectors = known && lineOf(known)?.length;
    const size = sectors === undefined ? await sizeOf(mapper, record.image) : sectors * SECTOR;
    const origin = known ?? (await this.#images.makeOriginDevice(record.image));
    const table = mergeTable(record.image, cow, size, chunkSize);
    const ref = { name: origin.storedName };
    const work = this.#images.intending(origin, table, undefined, () =>
      this.#images.holding(ref.name, async () => {
        await this.#images.save();
        if (typeOf(origin) !== 'snapshot-merge') await mapper.load(ref, [table]);
        // What the failed disk cannot flush must not keep the merge from being tried again.
        else
          await mapper.suspend(ref, { noflush: true }).catch((error) => {
            if (!origin.suspended) throw error;
          });
        await mapper.resume(ref);
      }),
    );
    try {
      await work;
    } catch (error) {
      if (!known) await this.#images.unmakeOriginDevice(origin);
      throw error;
    }
    entry.origin = origin;
    Object.assign(progress, { state: 'merging', origin: origin.storedName, error: undefined, hint: undefined });
    this.#book.touch(progress);
    this.#log(`${name}: its merge into ${record.image} goes on`);
    this.#follow(entry);
  }

  #enter(record: MergeRecord): Entry {
    const { name, cow, chunkSize, exceptions } = record.merging;
    const progress: MergeProgress = {
      name,
      image: record.image,
      origin: deviceOf(this.#images, record)?.storedName ?? '',
      cow,
      state: 'merging',
      chunkSize,
      total: exceptions,
      merged: 0,
      version: 0,
    };
    const entry: Entry = { record, progress, origin: undefined, followed: false };
    this.#entries.set(record, entry);
    this.#book.enter(progress);
    return entry;
  }

  #follow(entry: Entry): void {
    if (entry.followed) return;
    entry.followed = true;
    const following = this.#watch(entry).finally(() => {
      entry.followed = false;
      this.#following.delete(following);
    });
    this.#following.add(following);
  }

  async #watch(entry: Entry): Promise<void> {
    const { signal } = this.#stopping;
    const { progress } = entry;
    for (let pause = PAUSE_MIN_MS; !signal.aborted; pause = Math.min(pause * 2, PAUSE_MAX_MS)) {
      let obstacle: string | undefined;
      try {
        if (await this.#look(entry)) return;
      } catch (error) {
        // The state cannot be saved, or a disk failed: another time perhaps.
        obstacle = (error as Error).message;
        if (obstacle !== progress.error) this.#log(`${progress.name}: ${obstacle}`);
        pause = RETRY_MS;
      }
      if (obstacle !== progress.error) {
        progress.error = obstacle;
        this.#book.touch(progress);
      }
      await this.#pause(pause, signal).catch(() => {});
    }
  }

  /** True: the merge has ended, this way or that. */
  async #look(entry: Entry): Promise<boolean> {
    const { record, progress, origin } = entry;
    if (!origin || origin.deleting) {
      this.#fail(entry, `its origin device ${progress.origin} was removed`, 'bring it back');
      return true;
    }
    progress.origin = origin.storedName;
    const type = typeOf(origin);
    if (type !== 'snapshot-merge' || !isOver(origin, record.image, record.merging.cow)) {
      if (type === 'snapshot-origin' && (await isEmpty(this.#images.mapper, record))) return this.#finish(entry);
      this.#fail(entry, `its origin device ${progress.origin} has another table`, 'merge all the same');
      return true;
    }
    const [{ text }] = origin.liveTable!.text('info');
    if (text === 'Invalid') return !origin.suspended && this.#giveUp(entry);
    // These words stay, though it has begun again.
    const { note } = origin.liveTable!;
    if (text === 'Merge failed' && note !== undefined) {
      this.#fail(entry, note);
      return true;
    }
    const shown = exceptionsBy(text, progress.chunkSize);
    const left = shown ?? (await exceptionsOn(this.#images.mapper, record.merging));
    this.#count(progress, left);
    return left === 0 && !origin.suspended && this.#finish(entry, shown === undefined);
  }

  #count(progress: MergeProgress, left: number): void {
    const total = Math.max(progress.total, left);
    const merged = total - left;
    if (total === progress.total && merged === progress.merged) return;
    progress.total = total;
    progress.merged = merged;
    this.#book.touch(progress);
  }

  /** `hidden`: the words of the target do not show that it is done. */
  #finish(entry: Entry, hidden = false): Promise<boolean> {
    return this.#lock.run(async () => {
      if (this.#stopping.signal.aborted) return false;
      const { origin, record } = entry;
      await this.#restoreOrigin(entry);
      if (hidden && origin) this.#emit(origin, { event: 'merge-done', cow: record.merging.cow });
      // The COW file may go only when no restart looks for it.
      await this.#images.save();
      await this.#tidy(entry);
      this.#log(`${entry.progress.name}: merged into ${entry.progress.image}`);
      return true;
    });
  }

  /** The store was invalid when it was opened: what the fork held is lost, and was before the merge began. */
  #giveUp(entry: Entry): Promise<boolean> {
    return this.#lock.run(async () => {
      if (this.#stopping.signal.aborted) return false;
      const { record, progress } = entry;
      await this.#restoreOrigin(entry);
      this.#images.remove(record);
      const originRemoved = await this.#images.removeOrigin(record.image);
      await this.#images.save();
      this.#end(entry, {
        state: 'lost',
        error: `Cannot merge ${progress.name}: its COW store ${progress.cow} became invalid before the merge began`,
        hint: 'the image is as it was without the fork',
        kept: progress.cow,
        originRemoved,
      });
      return true;
    });
  }

  async #restoreOrigin({ origin, record }: Entry): Promise<void> {
    if (!origin || typeOf(origin) !== 'snapshot-merge') return;
    const { mapper } = this.#images;
    const ref = { name: origin.storedName };
    await this.#images.whileSuspended([await mapper.info(ref)], async () => {
      // It has failed in its last batch.
      if (origin.liveTable?.note !== undefined) throw new DmError('MERGE_FAILED', 'EIO', origin.liveTable.note);
      await mapper.load(ref, [originTable(record.image, origin.size)]);
    });
  }

  async #tidy(entry: Entry): Promise<void> {
    const { record } = entry;
    const { keep, cow } = record.merging;
    const end: Partial<MergeProgress> = { state: 'done', merged: entry.progress.total, error: undefined };
    try {
      Object.assign(end, await this.#images.forget(record, !keep));
    } catch (error) {
      end.error = (error as Error).message;
    }
    if (end.deleted === undefined) end.kept = cow;
    await this.#images.save().catch((error: Error) => this.#log(error.message));
    this.#end(entry, end);
  }

  #end(entry: Entry, end: Partial<MergeProgress>): void {
    const { record, progress } = entry;
    this.#entries.delete(record);
    Object.assign(progress, end);
    this.#book.end(progress);
  }

  #fail(entry: Entry, why: string, then = 'once that is repaired'): void {
    const { progress } = entry;
    Object.assign(progress, {
      state: 'failed',
      error: `The merge of ${progress.name} into ${progress.image} has stopped: ${why}`,
      hint: `nothing is lost; ${then}: dmkit merge ${progress.name}`,
    });
    this.#book.touch(progress);
    this.#log(progress.error!);
  }
}

const isMerging = (record: ForkRecord): record is MergeRecord => record.merging !== undefined;
