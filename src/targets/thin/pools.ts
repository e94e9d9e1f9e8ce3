/** Which pool a table has: one for each metadata device, whose table may be replaced, but not by another pool's. */
import type { BlockDevice } from '../../device/block-device.ts';
import { Lock } from '../../lib/lock.ts';
import { PoolMetadata } from '../../stores/thin/pool-metadata.ts';
import type { Sector } from '../../units.ts';
import type { Features } from './arguments.ts';
import { Pool } from './pool.ts';

/** By metadata device, and by the mapped device of its table. */
const byMetadata = new WeakMap<BlockDevice, Pool>();
const byOwner = new WeakMap<BlockDevice, Pool>();
/** By metadata device: a pool is opened and closed by one table at a time. */
const locks = new WeakMap<BlockDevice, Lock>();

function lockOf(metadata: BlockDevice): Lock {
  let lock = locks.get(metadata);
  if (!lock) locks.set(metadata, (lock = new Lock()));
  return lock;
}

export const poolOf = (owner: BlockDevice): Pool | undefined => byOwner.get(owner);

interface PoolDevices {
  readonly metadata: BlockDevice;
  readonly data: BlockDevice;
}

type Refuse = (errno: 'EBUSY' | 'EINVAL', text: string) => Error;

/** The pool of a table: the one there is, or one that is opened, or made. Throws with the kernel's words. To be given back by `leave`. */
export async function join(
  owner: BlockDevice,
  devices: PoolDevices,
  blockSize: Sector,
  features: Features,
  refuse: Refuse,
): Promise<Pool> {
  return lockOf(devices.metadata).run(async () => {
    const there = find(owner, devices, features, refuse);
    const pool = there ?? (await open(owner, devices, blockSize, features));
    pool.tables++;
    return pool;
  });
}

function find(owner: BlockDevice, devices: PoolDevices, features: Features, refuse: Refuse): Pool | undefined {
  const there = byMetadata.get(devices.metadata);
  if (there && there.owner !== owner) throw refuse('EBUSY', 'metadata device already in use by a pool');
  if (there && there.data !== devices.data) throw refuse('EBUSY', 'data device already in use by a pool');
  const own = byOwner.get(owner);
  if (own && own !== there) throw refuse('EINVAL', 'different pool cannot replace a pool');
  // What its thin devices have told their users already does not change.
  if (there?.features && there.features.discard !== features.discard)
    throw refuse('EINVAL', 'Discard support cannot be disabled once enabled');
  if (there?.mode === 'fail') throw refuse('EINVAL', 'Error registering metadata threshold');
  return there;
}

async function open(
  owner: BlockDevice,
  devices: PoolDevices,
  blockSize: Sector,
  { readOnly }: Features,
): Promise<Pool> {
  const metadata = await PoolMetadata.open(devices.metadata, {
    dataBlockSize: blockSize,
    readOnly,
    flushData: () => devices.data.flush(),
  });
  const pool = new Pool(owner, devices, metadata, blockSize);
  byMetadata.set(devices.metadata, pool);
  byOwner.set(owner, pool);
  return pool;
}

/** A table lets go of its pool. */
export function leave(pool: Pool): Promise<void> {
  return lockOf(pool.metadataDevice).run(async () => {
    if (--pool.tables > 0) return;
    try {
      await pool.close();
    } finally {
      byMetadata.delete(pool.metadataDevice);
      byOwner.delete(pool.owner);
    }
  });
}
