/** Answers to BLOCK_STATUS: extents of a device as the descriptors of a meta context. */
import type { BlockDevice } from '../../device/block-device.ts';
import { BASE_ALLOCATION, CHANGED, STATE } from '../../formats/nbd/constants.ts';
import { viewOf } from '../../formats/nbd/handshake.ts';
import { blockDescriptor } from '../../formats/nbd/transmission.ts';
import { type Bytes, bytes } from '../../units.ts';
import type { OpenExport } from './exports.ts';
import { CONTEXT_ID, type ContextName } from './handshake.ts';

/** Descriptor lengths and flags in turn, neighbours with the same flags joined. */
class Descriptors {
  readonly numbers: number[] = [];

  add(length: number, flags: number): void {
    const { numbers } = this;
    if (length === 0) return;
    if (numbers.length > 0 && numbers[numbers.length - 1] === flags) numbers[numbers.length - 2] += length;
    else numbers.push(length, flags);
  }
}

/**
 * The payload of a BLOCK_STATUS chunk for the range, which lies inside the device. At most `limit` descriptors, one with
 * `one`; none reaches beyond the range, since ranges of 4 GiB would not fit their 32 bits.
 */
export async function blockStatus(
  open: OpenExport,
  context: ContextName,
  at: Bytes,
  length: number,
  limit: number,
  one: boolean,
): Promise<Buffer> {
  const { device } = open;
  // Devices think in sectors; a byte-granular client sees the sectors its range touches, cut to it.
  const first = bytes(Math.floor(at / 512) * 512);
  const end = Math.min(Math.ceil((at + length) / 512) * 512, device.size);
  const found = new Descriptors();
  for (const { size, flags } of await stretches(open, device, context, first, end - first)) found.add(size, flags);
  const { numbers } = found;
  const used = Math.min(one ? 1 : limit, numbers.length / 2);
  const view = viewOf(Buffer.alloc(4 + used * blockDescriptor.size));
  view.setUint32(0, CONTEXT_ID[context]);
  let left = length;
  let count = 0;
  for (; count < used && left > 0; count++) {
    const size = Math.min(numbers[2 * count] - (count === 0 ? at - first : 0), left);
    blockDescriptor.set(view, 4 + count * blockDescriptor.size, { length: size, flags: numbers[2 * count + 1] });
    left -= size;
  }
  return Buffer.from(view.buffer, view.byteOffset, 4 + count * blockDescriptor.size);
}

async function stretches(open: OpenExport, device: BlockDevice, context: ContextName, at: Bytes, length: number) {
  if (context === BASE_ALLOCATION) {
    const extents = await device.extents(at, length);
    return extents.map(({ length: size, hole, zero }) => ({
      size,
      flags: (hole ? STATE.HOLE : 0) | (zero ? STATE.ZERO : 0),
    }));
  }
  const extents = (await open.changed?.(at, length)) ?? [];
  return extents.map(({ length: size, changed }) => ({ size, flags: changed ? CHANGED : 0 }));
}
