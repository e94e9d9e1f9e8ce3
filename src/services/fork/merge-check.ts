/** Whether a snapshot can be merged into its origin now, and what that takes. Nothing is changed here. */
import { DmError } from '../../errors.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { MergeOptions } from './fork-control.ts';
import type { Images } from './images.ts';
import { exceptionsOn } from './merge-devices.ts';
import { exceptionsBy } from './merge-status.ts';

export interface Mergeable {
  fork: MappedDevice;
  origin: MappedDevice;
  image: string;
  cow: string;
  /** Bytes. */
  chunkSize: number;
  exceptions: number;
}

/** Throws what `ForkControl.merge` rejects with. `users`: who has a device open, and how to end that. */
export async function checkMerge(
  images: Images,
  name: string,
  { force = false }: MergeOptions,
  users: (name: string) => Promise<string | undefined>,
): Promise<Mergeable> {
  const { mapper } = images;
  if (!mapper.names().includes(name))
    throw new DmError('NO_DEVICE', 'ENXIO', `Cannot find the mapped device ${JSON.stringify(name)}`, {
      hint: 'look at: dmkit ls; of a merge that ended before the daemon was last started, only dmkit.log in the state directory tells',
    });
  const fork = mapper.device({ name });
  const { origin: image, cow, store, chunkSize } = await images.snapshot(name);
  if (store.startsWith('N'))
    throw new DmError('MERGE_TRANSIENT', 'EINVAL', `Cannot merge ${name}: it is transient (N)`, {
      hint: `take its bytes another way: nbdcopy "$(dmkit uri ${name})" FILE`,
    });
  const [{ text: status }] = fork.liveTable!.text('info');
  if (status === 'Invalid')
    throw new DmError('SNAPSHOT_INVALID', 'EIO', `Cannot merge ${name}: it is invalid, its changes are lost`, {
      hint: `remove it: dmkit drop ${name}`,
    });
  images.checkNotMerging(image, `merge ${name}`);
  images.checkAllThere(image, `merge ${name}`);
  const volume = await images.shownBy(image);
  if (volume !== undefined)
    throw new DmError(
      'MERGE_OTHERS',
      'EBUSY',
      `Cannot merge ${name}: the volume ${volume}, over the same image, would show the changes`,
      {
        hint: `drop it first: dmkit drop ${volume}`,
      },
    );
  const origin = await originOf(images, name, image);
  const shown = origin.storedName;
  if (origin.size < fork.size)
    throw new DmError(
      'MERGE_ORIGIN',
      'EINVAL',
      `Cannot merge ${name}: it has ${fork.size} bytes, and its origin device ${shown} only ${origin.size}`,
      { hint: `look at: dmkit dmsetup table ${shown}` },
    );
  if (origin.liveTable!.readOnly || origin.liveTable!.devices[0].device.readOnly)
    throw new DmError('READ_ONLY', 'EROFS', `Cannot merge ${name}: its image ${image} is read-only`, {
      hint: `make it writable, and its origin device anew: dmkit drop --keep ${name}; chmod u+w ${image}; dmkit fork ${image} ${name}`,
    });
  if (origin.suspended)
    throw new DmError('SUSPENDED', 'EBUSY', `Cannot merge ${name}: its origin device ${shown} is suspended`, {
      hint: `dmkit dmsetup resume ${shown}`,
    });
  if (fork.openCount > 0)
    throw new DmError('DEVICE_OPEN', 'EBUSY', `Cannot merge ${name}: it is open ${fork.openCount} times`, {
      hint: (await users(name)) ?? 'close what has it open first',
    });
  if (origin.openCount > 0 && !force)
    throw new DmError(
      'DEVICE_OPEN',
      'EBUSY',
      `Cannot merge ${name}: its origin device ${shown} is open, and its contents are to change`,
      {
        hint: `${(await users(shown)) ?? 'close what has it open first'}\nor, if nobody has cached or mounted anything of it: dmkit merge ${name} --force`,
      },
    );
  const exceptions = exceptionsBy(status, chunkSize);
  return {
    fork,
    origin,
    image,
    cow,
    chunkSize,
    exceptions: exceptions ?? (await exceptionsOn(mapper, { cow, chunkSize })),
  };
}

/** The one device through which the image is written: it becomes the merge. */
async function originOf(images: Images, name: string, image: string): Promise<MappedDevice> {
  const origins = await images.originsOf(image);
  const refuse = (why: string, hint: string) =>
    new DmError('MERGE_ORIGIN', 'EINVAL', `Cannot merge ${name}: ${why}`, { hint });
  if (origins.length === 0)
    throw refuse(
      `${image} has no origin device`,
      `make one: dmkit dmsetup create NAME --table '0 SECTORS snapshot-origin ${image}'`,
    );
  const names = origins.map((info) => info.name);
  if (names.length > 1)
    throw refuse(
      `${image} has ${names.length} origin devices: ${names.join(' ')}`,
      'remove all but one: dmkit dmsetup remove NAME',
    );
  const [shown] = names;
  if (origins[0].targetCount > 1)
    throw refuse(`its origin device ${shown} has other targets beside`, `look at: dmkit dmsetup table ${shown}`);
  return images.mapper.device({ name: shown });
}
