/** Reading the list of a persistent store, area after area, when it is opened. */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { FormatError } from '../../errors.ts';
import { areaChunk, eachException, type Layout, MAX_CHUNK } from '../../formats/exception-store.ts';
import { bytes } from '../../units.ts';
import { CUT_SHORT } from './header.ts';

/** Areas read at once, bounded in bytes too. */
const READ_AHEAD = 12;
const READ_AHEAD_BYTES = 4 * 1024 * 1024;

/** The area in which the list ends. */
interface LastArea {
  readonly index: number;
  /** As on disk, whatever stands behind the end included. */
  readonly area: Uint8Array;
  /** Exceptions in it. */
  readonly count: number;
}

/**
 * Visits every exception in the order of the list. Throws FormatError COW_TRUNCATED (EIO): the list goes on behind the end
 * of `cow`; COW_ENTRY (EINVAL): a number that no device reaches; and what reading throws.
 */
export async function readList(
  cow: BlockDevice,
  layout: Layout,
  visit: (oldChunk: number, newChunk: number) => void,
): Promise<LastArea> {
  const { chunkBytes, entries } = layout;
  const areaAt = (index: number) => bytes(areaChunk(layout, index) * chunkBytes);
  const ahead = Math.max(1, Math.min(READ_AHEAD, Math.floor(READ_AHEAD_BYTES / chunkBytes)));
  const buffers = Array.from({ length: ahead }, () => new Uint8Array(chunkBytes));
  const reads: Maybe[] = [];
  const read = (index: number) => {
    const at = areaAt(index);
    if (at + chunkBytes > cow.size) return;
    try {
      const wait = cow.read(at, buffers[index % ahead], 0, chunkBytes);
      // Its turn may never come: then nobody minds that it failed.
      wait?.catch(() => {});
      reads[index % ahead] = wait;
    } catch (error) {
      reads[index % ahead] = Promise.reject(error);
      reads[index % ahead]?.catch(() => {});
    }
  };
  try {
    for (let index = 0; index < ahead; index++) read(index);
    for (let index = 0; ; index++) {
      if (areaAt(index) + chunkBytes > cow.size)
        throw new FormatError(
          'COW_TRUNCATED',
          'EIO',
          `Cannot read area ${index} of the exception store on ${cow.name}: it lies beyond the device's ${cow.size} bytes`,
          { hint: CUT_SHORT },
        );
      const wait = reads[index % ahead];
      if (wait) await wait;
      const area = buffers[index % ahead];
      const count = eachException(new DataView(area.buffer), (oldChunk, newChunk) => {
        if (newChunk > MAX_CHUNK || oldChunk > MAX_CHUNK) throw beyond(cow, index, oldChunk, newChunk);
        visit(oldChunk, newChunk);
      });
      if (count < entries) return { index, area, count };
      read(index + ahead);
    }
  } finally {
    // The buffers are the device's until then, and the device may be closed when this has thrown.
    await Promise.allSettled(reads);
  }
}

const beyond = (cow: BlockDevice, index: number, oldChunk: number, newChunk: number) =>
  new FormatError(
    'COW_ENTRY',
    'EINVAL',
    `Cannot read area ${index} of the exception store on ${cow.name}: the exception ${oldChunk} -> ${newChunk} is beyond any device`,
    { hint: 'the store is corrupt; `dmkit inspect` says what can be read of it' },
  );
