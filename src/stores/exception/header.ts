/** The first chunk of a COW device: whether there is a store, and of which chunk size. */
import type { BlockDevice } from '../../device/block-device.ts';
import { FormatError } from '../../errors.ts';
import { chunkSizeFault, diskHeader, type Layout, layoutOf, MAGIC, VERSION } from '../../formats/exception-store.ts';
import { bytes, SECTOR, type Sector, sector } from '../../units.ts';

/** The kernel's default: 16 KiB. */
const DEFAULT_CHUNK = sector(32);

export const CUT_SHORT = 'the device was cut short: give it its old size back; `dmkit inspect` says what is there';

/**
 * What the first chunk of a COW device says. `blank`: no store yet; `layout` is then what one made with `chunkSize`
 * (0: the default) would have. Throws as `PersistentStore.open` does; writes nothing.
 */
export async function readHeader(
  cow: BlockDevice,
  chunkSize: Sector,
  originBlockSize = SECTOR,
): Promise<{ state: 'blank' | 'invalid' | 'valid'; layout: Layout }> {
  const supplied = chunkSize || (Math.max(DEFAULT_CHUNK, cow.blockSize / SECTOR) as Sector);
  const head = new Uint8Array(SECTOR);
  if (cow.size < head.length)
    throw new FormatError(
      'COW_TOO_SMALL',
      'EIO',
      `Cannot read an exception store on ${cow.name}: it has only ${cow.size} bytes`,
    );
  await cow.read(bytes(0), head, 0, head.length);
  const header = diskHeader.get(new DataView(head.buffer), 0);
  if (header.magic === 0) return { state: 'blank', layout: layoutOf(supplied) };
  if (header.magic !== MAGIC)
    throw new FormatError(
      'COW_MAGIC',
      'ENXIO',
      `Cannot read the exception store on ${cow.name}: its magic is 0x${header.magic.toString(16).padStart(8, '0')}, expected 0x${MAGIC.toString(16)}`,
      {
        hint: 'check the order `snapshot <origin> <COW device> P 16`; for a new snapshot, zero the first chunk of the COW device',
      },
    );
  if (header.chunkSize !== supplied) {
    const fault = chunkSizeFault(header.chunkSize, [cow.blockSize, originBlockSize]);
    if (fault)
      throw new FormatError(
        'COW_CHUNK_SIZE',
        'EINVAL',
        `Cannot read the exception store on ${cow.name}: its chunk size is ${header.chunkSize} sectors. ${fault}`,
        { hint: 'look at it: dmkit inspect' },
      );
  }
  if (header.version !== VERSION)
    throw new FormatError(
      'COW_VERSION',
      'EINVAL',
      `Cannot read the exception store on ${cow.name}: its version is ${header.version}, expected ${VERSION}`,
      { hint: 'look at it: dmkit inspect' },
    );
  const layout = layoutOf(header.chunkSize);
  if (layout.chunkBytes > cow.size)
    throw new FormatError(
      'COW_TRUNCATED',
      'EIO',
      `Cannot read the exception store on ${cow.name}: one chunk has ${layout.chunkBytes} bytes, the device ${cow.size}`,
      { hint: CUT_SHORT },
    );
  return { state: header.valid === 0 ? 'invalid' : 'valid', layout };
}
