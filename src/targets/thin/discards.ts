/** Discards of virtual blocks: what is unmapped, and what of that the data device hears of. */
import type { BlockDevice } from '../../device/block-device.ts';
import type { Run } from '../../stores/thin/pool-metadata.ts';
import type { Bytes } from '../../units.ts';
import type { Pool } from './pool.ts';

/** Unmaps virtual blocks of device `id` from `begin` up to `end`; what becomes of their data the table says. */
export async function unmap(pool: Pool, id: number, begin: number, end: number): Promise<void> {
  if (!pool.passesDown) await pool.locked(() => remove(pool, id, begin, end));
  else
    for (let from = begin; ; ) {
      const run = await pool.metadata.nextRun(id, from, end);
      if (!run) break;
      from = run.begin + run.count;
      await pool.locked(() => passDown(pool, id, run));
    }
  pool.changed(id);
  // Somebody may be waiting for what is free now.
  if (pool.mode === 'outOfDataSpace') await pool.commit();
}

async function remove(pool: Pool, id: number, begin: number, end: number): Promise<void> {
  for (let from = begin; from < end; ) {
    pool.checkChangeable();
    const at = from;
    from = await pool.guarded('dm_thin_remove_range', () => pool.metadata.removeRange(id, at, end));
    if (pool.metadata.commitDue) await pool.commitLocked();
  }
}

/** Blocks that are left without an owner are discarded below before they are given out again. */
async function passDown(pool: Pool, id: number, { begin, block, count, shared }: Run): Promise<void> {
  const { metadata, data } = pool;
  await remove(pool, id, begin, begin + count);
  // At the last commit somebody else may still have had what was shared: that must not be gone after a power cut.
  if (shared) await pool.commitLocked();
  for (let from = block, end = block + count; from < end; ) {
    let length = shared ? 0 : end - from;
    while (shared && from + length < end && (await metadata.dataCount(from + length)) === 0) length++;
    // A discard is a hint: that it failed matters to nobody.
    if (length > 0) await discard(data, pool.at(from), length * pool.blockBytes).catch(() => {});
    from += length || 1;
  }
}

async function discard(device: BlockDevice, at: Bytes, length: number): Promise<void> {
  const wait = device.discard(at, length);
  if (wait) await wait;
}
