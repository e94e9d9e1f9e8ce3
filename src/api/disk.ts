import type { BlockDevice } from '../device/block-device.ts';
import { ByteAccess } from '../device/byte-access.ts';
import { DmError } from '../errors.ts';
import { type Bytes, bytes, SECTOR } from '../units.ts';

/**
 * A mapped device, opened for I/O at any byte. As long as it is open it cannot be removed. Every call rejects with a
 * DmError that carries an errno.
 */
export interface Disk {
  /** Bytes; asked again at every use, as a new table may change it. */
  readonly size: number;
  /** Bytes, 512 or 4096: requests that are multiples of it need no read-modify-write. */
  readonly blockSize: number;
  readonly readOnly: boolean;
  read(at: number, length: number): Promise<Buffer>;
  write(at: number, data: Uint8Array): Promise<void>;
  /** Everything that was written before survives a power cut when this resolves. */
  flush(): Promise<void>;
  writeZeroes(at: number, length: number): Promise<void>;
  /** Gives the space back where the device can; the range may then read as anything that it held, or zeroes. */
  discard(at: number, length: number): Promise<void>;
  /** Idempotent. Flushes nothing. */
  close(): Promise<void>;
}

const shared = new WeakMap<BlockDevice, ByteAccess>();

/** `close` gives back what `device` was opened with. */
export function diskOf(device: BlockDevice, close: () => Promise<void>): Disk {
  // All writers of a device share one, or a partial sector could bring back old bytes beside it.
  let access = shared.get(device);
  if (!access) shared.set(device, (access = new ByteAccess(device, SECTOR)));
  const bytewise = access;
  let open = true;
  const check = (what: string, at: number, length: number): Bytes => {
    if (!open) throw new DmError('CLOSED', 'ENXIO', `Cannot ${what} ${device.name}: it was closed`);
    if (!Number.isSafeInteger(at) || !Number.isSafeInteger(length) || at < 0 || length < 0 || at + length > device.size)
      throw new DmError(
        'OUT_OF_RANGE',
        'EINVAL',
        `Cannot ${what} ${device.name}: ${length} bytes at ${at} lie beyond its ${device.size}`,
      );
    return bytes(at);
  };
  return {
    get size() {
      return device.size;
    },
    get blockSize() {
      return device.blockSize;
    },
    get readOnly() {
      return device.readOnly;
    },
    async read(at, length) {
      const from = check('read', at, length);
      const into = Buffer.alloc(length);
      if (length > 0) await bytewise.read(from, into, 0, length);
      return into;
    },
    async write(at, data) {
      const to = check('write to', at, data.length);
      if (data.length > 0) await bytewise.write(to, data, 0, data.length);
    },
    async flush() {
      check('flush', 0, 0);
      await device.flush();
    },
    async writeZeroes(at, length) {
      const from = check('zero', at, length);
      if (length > 0) await bytewise.writeZeroes(from, length, true);
    },
    async discard(at, length) {
      const from = check('discard on', at, length);
      if (length > 0) await bytewise.discard(from, length);
    },
    async close() {
      if (!open) return;
      open = false;
      await close();
    },
  };
}
