/** Puts right in place what harms nobody: the mark that a pool needs a check, and blocks that nobody uses and nobody gets. */
import type { BlockDevice } from '../../device/block-device.ts';
import { BLOCK_BYTES, blockData, seal } from '../../formats/pdata/block.ts';
import { diskSuperblock, NEEDS_CHECK, SUPERBLOCK } from '../../formats/thin/superblock.ts';
import { bytes } from '../../units.ts';
import { type CheckReport, checkMetadata, type Leak } from './check.ts';
import { PoolMetadata } from './pool-metadata.ts';

/** What a check finds at the end, and what was put right until then. */
export interface Mended extends CheckReport {
  /** Leaked blocks that are free now. */
  readonly released: number;
  /** The mark was there. */
  readonly cleared: boolean;
}

/**
 * Checks metadata whose pool is not active, and puts these right if nothing else is wrong. Rejects as `checkMetadata`, or with what
 * the device says.
 */
export async function mend(device: BlockDevice): Promise<Mended> {
  let released = 0;
  let cleared = false;
  for (;;) {
    const report = await checkMetadata(device);
    const { damaged, leaks, needsCheck } = report;
    if (damaged || (leaks.length === 0 && !needsCheck)) return { ...report, released, cleared };
    // First: what is marked is not changed.
    if (needsCheck) await clearMark(device);
    await release(device, leaks);
    cleared ||= needsCheck;
    released += leaks.length;
  }
}

/** What leaks are listed; there may be more. */
async function release(device: BlockDevice, leaks: readonly Leak[]): Promise<void> {
  if (leaks.length === 0) return;
  const { dataBlockSize } = diskSuperblock.get((await readSuperblock(device)).view, 0);
  const pool = await PoolMetadata.open(device, { dataBlockSize, flushData() {} });
  for (const { of, block, count } of leaks)
    for (let i = 0; i < count; i++)
      await (of === 'data' ? pool.releaseData(block, block + 1) : pool.releaseMetadata(block, block + 1));
  await pool.commit();
}

async function readSuperblock(device: BlockDevice) {
  const block = blockData();
  const wait = device.read(bytes(0), block.bytes, 0, BLOCK_BYTES);
  if (wait) await wait;
  return block;
}

/** One sector changes. */
async function clearMark(device: BlockDevice): Promise<void> {
  const block = await readSuperblock(device);
  const { flags } = diskSuperblock.get(block.view, 0);
  block.view.setUint32(diskSuperblock.at.flags, flags & ~NEEDS_CHECK, true);
  seal(block, 0, SUPERBLOCK);
  await device.write(bytes(0), block.bytes, 0, BLOCK_BYTES);
  await device.flush();
}
