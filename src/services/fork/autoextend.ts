/**
 * `--autoextend`: the COW file of a fork grows before it is full, as LVM's snapshot_autoextend_threshold and _percent have
 * it. It is looked at every second; a burst of writes that fills it before is met by the snapshot target itself, which
 * asks for room in the middle of a write.
 */
import { realpathSync } from 'node:fs';
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError, ioError } from '../../errors.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import { type Bytes, bytes, SECTOR } from '../../units.ts';
import type { Emit } from '../events/event.ts';
import { type Fill, percentOf } from '../events/fill.ts';
import { COW_FILE, cowSizeFor } from './cow-file.ts';
import type { Autoextend } from './fork-control.ts';
import type { Images } from './images.ts';
import type { ForkRecord } from './records.ts';

type Policy = NonNullable<ForkRecord['autoextend']>;

export class Autoextender {
  readonly #images: Images;
  readonly #emit: Emit;
  /** What was last told of a file that did not grow, by uuid of the fork. */
  readonly #told = new Map<string, string>();

  constructor(images: Images, emit: Emit) {
    this.#images = images;
    this.#emit = emit;
  }

  /** There is a fork to be looked at. */
  get needed(): boolean {
    return this.#images.records.some(({ autoextend }) => autoextend !== undefined);
  }

  /** To be told at every look. */
  filled(device: MappedDevice, cow: BlockDevice, fill: Fill): void {
    // A file that was cut short would show zeroes for what it had there.
    if (fill.allocated > fill.total) return;
    const policy = this.#policyOf(device, cow);
    if (policy && percentOf(fill) >= policy.threshold) this.#extend(device, cow, policy, fill.allocated);
  }

  /** The COW device is full, in the middle of a write. True: it is larger now. */
  full(device: MappedDevice, cow: BlockDevice): boolean {
    const policy = this.#policyOf(device, cow);
    return policy !== undefined && this.#extend(device, cow, policy, cow.size);
  }

  /** Only a fork's own COW file: another table may have been loaded, over another device. */
  #policyOf({ uuid }: MappedDevice, cow: BlockDevice): Policy | undefined {
    if (uuid === '') return undefined;
    const record = this.#images.records.find((entry) => entry.uuid === uuid);
    if (!record?.autoextend) return undefined;
    return record.cow === undefined || isFile(record.cow, cow) ? record.autoextend : undefined;
  }

  #extend(device: MappedDevice, cow: BlockDevice, policy: Policy, used: number): boolean {
    const from = cow.size;
    const enough = cowSizeFor(device.size, policy.chunkSize);
    const limit = Math.min(policy.limit ?? enough, enough);
    if (from >= limit) {
      const message = `its limit of ${limit} bytes is reached`;
      if (limit < enough) this.#failed(device, cow, 'LIMIT', message);
      return false;
    }
    const size = grown(from, used, policy, limit);
    try {
      if (!cow.extend) throw ioError(`Cannot extend ${cow.name}: its size is not ours to choose`);
      cow.extend(size);
    } catch (error) {
      this.#failed(device, cow, (error as DmError).code, (error as Error).message);
      return false;
    }
    this.#told.delete(device.uuid);
    this.#emit(device, { event: 'extend', cow: cow.name, from, size });
    return cow.size > from;
  }

  /** Once for each reason: it is tried again every second. */
  #failed(device: MappedDevice, cow: BlockDevice, code: string, message: string): void {
    if (this.#told.get(device.uuid) === message) return;
    this.#told.set(device.uuid, message);
    this.#emit(device, { event: 'extend-failed', cow: cow.name, size: cow.size, code, message });
  }
}

/** By as many steps as bring what is used below the threshold, whole chunks each, at most to `limit`. */
export function grown(
  from: number,
  used: number,
  { threshold, percent, chunkSize }: Omit<Policy, 'limit'>,
  limit: number,
): Bytes {
  let size = from;
  do size = Math.ceil((size * (100 + percent)) / 100 / chunkSize) * chunkSize;
  while (size < limit && used * 100 >= size * threshold);
  return bytes(Math.min(size, limit));
}

function isFile(path: string, device: BlockDevice): boolean {
  // Asked every second, and the disk may hang.
  if (path === device.path) return true;
  try {
    return realpathSync(path) === device.path;
  } catch {
    return false;
  }
}

/** Throws FORK_AUTOEXTEND (EINVAL) unless both are percentages that make sense. `what` is to grow. */
export function checkRates({ threshold, percent }: Autoextend, what: string): void {
  if (!Number.isInteger(threshold) || threshold < 1 || threshold > 100)
    throw cannotGrow(what, `its threshold is ${threshold} percent`, 'from 1 to 100: --autoextend 70:20');
  if (!Number.isInteger(percent) || percent < 1 || percent > 1000)
    throw cannotGrow(what, `it is to grow by ${percent} percent`, 'from 1 to 1000: --autoextend 70:20');
}

export const cannotGrow = (what: string, why: string, hint: string) =>
  new DmError('FORK_AUTOEXTEND', 'EINVAL', `Cannot let ${what} grow: ${why}`, { hint });

/** What a fork is made with, checked; `cowSize`: bytes to begin with. Throws FORK_AUTOEXTEND (EINVAL). */
export function policyOf(autoextend: Autoextend, chunkSize: number, cowSize?: number): Policy {
  checkRates(autoextend, COW_FILE);
  const { threshold, percent, limit } = autoextend;
  if (cowSize === undefined)
    throw cannotGrow(COW_FILE, 'it is as large from the start as it can become', 'say what it begins with: --size 1G');
  if (limit === undefined) return { threshold, percent, chunkSize };
  const whole = Math.floor(limit / SECTOR) * SECTOR;
  if (!(whole >= cowSize))
    throw cannotGrow(
      COW_FILE,
      `its limit of ${limit} bytes is below the ${cowSize} it begins with`,
      'a larger limit, or a smaller --size',
    );
  return { threshold, percent, chunkSize, limit: whole };
}
