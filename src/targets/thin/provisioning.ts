/**
 * New blocks of a thin device: allocated, filled, and only then mapped, so that no mapping leads to what was not written. Where nothing
 * is to be waited for all of it happens at once.
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import type { BlockRun, Mapping } from '../../stores/thin/pool-metadata.ts';
import { bytes } from '../../units.ts';
import type { Member, Pool } from './pool.ts';
import type { Request } from './traffic.ts';

/** Virtual blocks side by side that are written: a part of one, or all of several. */
export interface Part {
  readonly virtual: number;
  readonly blocks: number;
  /** What the first is mapped to, and shares with others. */
  readonly old: Mapping | undefined;
  /** `count` bytes at `offset` in the first; zeroes if `from` is absent. */
  readonly offset: number;
  readonly from: Uint8Array | undefined;
  readonly start: number;
  readonly count: number;
}

/** The thin device. */
export interface Volume extends Member {
  readonly pool: Pool;
  readonly origin: BlockDevice | undefined;
  /** Of the origin, in bytes. */
  readonly originSize: number;
  /** Resolves when the pool is not suspended any more; absent if it is not. */
  readonly held: Promise<void> | undefined;
  /** Virtual blocks up to `end` may be mapped now. */
  provisioned(end: number): void;
}

/** Gives these blocks data blocks of their own. Nobody else may be about it. */
export function provision(volume: Volume, part: Part): Maybe {
  const { pool, traffic } = volume;
  const run = pool.allocate(part.blocks);
  let provided: Maybe;
  if (run && !(run instanceof Promise)) {
    provided = provide(volume, part, run);
    if (!provided) return run.count < part.blocks ? provision(volume, behind(volume, part, run)) : undefined;
  }
  return traffic.alone(part.virtual, part.virtual + part.blocks, async (request) => {
    let found = (await run) ?? (await space(volume, request, part.blocks));
    await (provided ?? provide(volume, part, found));
    for (let left = part; found.count < left.blocks; ) {
      left = behind(volume, left, found);
      found = (await pool.allocate(left.blocks)) ?? (await space(volume, request, left.blocks));
      await provide(volume, left, found);
    }
  });
}

/** What is left of a part, when a run was provided for its first blocks. */
function behind({ pool }: Volume, part: Part, { count }: BlockRun): Part {
  const bytes = count * pool.blockBytes;
  const { virtual, blocks, start, count: all } = part;
  return { ...part, virtual: virtual + count, blocks: blocks - count, start: start + bytes, count: all - bytes };
}

/** Waits for space, which does not count as under way. */
async function space(volume: Volume, request: Request, blocks: number): Promise<BlockRun> {
  for (;;) {
    const wait = volume.pool.space(volume);
    request.end();
    await wait;
    while (volume.held) await volume.held;
    request.begin();
    volume.pool.checkWaits();
    const run = await volume.pool.allocate(blocks);
    if (run) return run;
  }
}

function provide(volume: Volume, part: Part, run: BlockRun): Maybe {
  const { sharedReads } = volume.pool;
  let wait: Maybe;
  try {
    wait = fill(volume, part, run);
    // The old block may go to somebody else: nobody may still be reading it.
    if (part.old) wait = wait ? wait.then(() => sharedReads.ended()) : sharedReads.ended();
    wait = wait ? wait.then(() => map(volume, part, run)) : map(volume, part, run);
  } catch (error) {
    return giveBack(volume, run, error);
  }
  return wait?.catch((error) => giveBack(volume, run, error));
}

async function giveBack({ pool }: Volume, run: BlockRun, error: unknown): Promise<never> {
  try {
    await pool.free(run);
  } catch {
    // What made it fail is what matters.
  }
  throw error;
}

function fill({ pool, origin, originSize }: Volume, part: Part, run: BlockRun): Maybe {
  const { virtual, blocks, old, offset, from, start } = part;
  const size = pool.blockBytes;
  const at = pool.at(run.begin);
  if (blocks > 1) {
    const count = run.count * size;
    return from ? pool.data.write(at, from, start, count) : pool.data.writeZeroes(at, bytes(count), false);
  }
  return pool.filler.fill({
    at,
    source: old ? pool.data : origin,
    from: old ? pool.at(old.block) : bytes(virtual * size),
    inside: old ? size : Math.max(0, Math.min(size, originSize - virtual * size)),
    // What no source has is zeroed, unless the pool is not to.
    zero: pool.zeroes,
    data: from,
    start,
    offset,
    count: part.count,
  });
}

function map(volume: Volume, { virtual }: Part, run: BlockRun): Maybe {
  const wait = volume.pool.map(volume.id, virtual, run);
  if (wait) return wait.then(() => volume.provisioned(virtual + run.count));
  volume.provisioned(virtual + run.count);
}
