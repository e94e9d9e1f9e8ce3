/**
 * Names, uuids and minors of the mapped devices: three indexes, each unique (Linux `dm-ioctl.c`). A device that is being
 * removed has given back its name and uuid already, its minor only when everything below it is closed. One that is
 * unfinished has them, and is found by nobody but a table that names it.
 */
import { DmError } from '../errors.ts';
import type { DeviceRef } from './control.ts';
import type { MappedDevice } from './mapped-device.ts';

/** What is found by name, uuid and minor. */
export interface Indexed {
  readonly minor: number;
  storedName: string;
  uuid: string;
  readonly unfinished: boolean;
  readonly deleting: boolean;
}

/**
 * Keeps names, uuids and minors unique over several mappers: each takes them here before it has them itself, and gives them
 * back here. What is refused rejects as the mapper's own call does.
 */
export interface Claims {
  /** For a device that is to be; `minor`: the one asked for. Resolves with the one it gets. */
  add(name: string, uuid: string, minor: number | undefined): Promise<number>;
  rename(minor: number, name: string): Promise<void>;
  setUuid(minor: number, uuid: string): Promise<void>;
  /** The device is being removed: its name and its uuid are free. */
  hide(minor: number): void;
  /** It is gone: so is its minor. */
  free(minor: number): void;
}

/** Linux `DM_NAME_LEN` and `DM_UUID_LEN`, the name's without its end. */
const NAME_BYTES_MAX = 127;
const UUID_BYTES_MAX = 128;
/** Linux `MINORBITS`. */
const MINORS = 2 ** 20;
const MAJORS = 4096;

export class DeviceIndex<T extends Indexed = MappedDevice> {
  readonly #major: number;
  readonly #byName = new Map<string, T>();
  readonly #byUuid = new Map<string, T>();
  readonly #byMinor = new Map<number, T>();
  /** No minor below is free. */
  #minorFloor = 0;

  constructor(major: number) {
    this.#major = major;
  }

  /** In ascending byte order of the stored name. */
  sorted(): T[] {
    return this.all().filter((device) => !device.unfinished);
  }

  /** Also the unfinished ones. */
  all(): T[] {
    return [...this.#byName.values()].sort(byName);
  }

  named(name: string): T | undefined {
    return this.#byName.get(name);
  }

  /** Throws ENXIO if there is no such device. */
  get(ref: DeviceRef): T {
    const device = this.find(ref);
    if (device && !device.unfinished) return device;
    throw new DmError('NO_DEVICE', 'ENXIO', `Cannot find the mapped device ${describe(ref)}`, {
      hint: 'look at: dmkit dmsetup ls',
    });
  }

  /** The minor asked for, else the lowest one free. Throws ENXIO when it is in use or out of range. */
  freeMinor(asked: number | undefined): number {
    if (asked !== undefined) {
      if (!Number.isInteger(asked) || asked < 0 || asked >= MINORS || this.#byMinor.has(asked))
        throw new DmError(
          'MINOR_IN_USE',
          'ENXIO',
          `Cannot take the minor ${asked}: it is in use or not below ${MINORS}`,
        );
      return asked;
    }
    while (this.#byMinor.has(this.#minorFloor)) this.#minorFloor++;
    if (this.#minorFloor >= MINORS) throw new DmError('MINOR_IN_USE', 'ENXIO', `All ${MINORS} minors are in use`);
    return this.#minorFloor;
  }

  /** Throws EINVAL for what can be no name, EBUSY for one in use. */
  checkName(name: string): void {
    checkName(name);
    if (this.#byName.has(name))
      throw inUse('NAME_IN_USE', `name "${name}"`, `remove it first: dmkit dmsetup remove ${name}`);
  }

  checkUuid(uuid: string): void {
    checkUuid(uuid);
    if (this.#byUuid.has(uuid)) throw inUse('UUID_IN_USE', `uuid "${uuid}"`);
  }

  add(device: T): void {
    this.#byName.set(device.storedName, device);
    if (device.uuid !== '') this.#byUuid.set(device.uuid, device);
    this.#byMinor.set(device.minor, device);
  }

  rename(device: T, name: string): void {
    this.#byName.delete(device.storedName);
    device.storedName = name;
    this.#byName.set(name, device);
  }

  setUuid(device: T, uuid: string): void {
    device.uuid = uuid;
    this.#byUuid.set(uuid, device);
  }

  /** Nobody finds the device any more; its minor stays taken. */
  hide(device: T): void {
    this.#byName.delete(device.storedName);
    if (device.uuid !== '') this.#byUuid.delete(device.uuid);
  }

  freeMinorOf(device: T): void {
    this.#byMinor.delete(device.minor);
    this.#minorFloor = Math.min(this.#minorFloor, device.minor);
  }

  /**
   * The one that a device argument means, by its name or number; undefined for what means something else. Throws ENXIO or EOVERFLOW for
   * a number that none has.
   */
  meant(argument: string): T | undefined {
    const number = /^(\d+):(\d+)$/.exec(argument);
    if (number) {
      const [major, minor] = [Number(number[1]), Number(number[2])];
      if (major >= MAJORS || minor >= MINORS)
        throw new DmError(
          'DEVICE_NUMBER',
          'EOVERFLOW',
          `Cannot open ${argument}: majors end at ${MAJORS - 1}, minors at ${MINORS - 1}`,
        );
      if (major === this.#major) return this.get({ major, minor });
    }
    return this.named(argument.startsWith('/dev/mapper/') ? argument.slice('/dev/mapper/'.length) : argument);
  }

  find(ref: DeviceRef): T | undefined {
    if ('name' in ref) return this.#byName.get(ref.name);
    if ('uuid' in ref) return this.#byUuid.get(ref.uuid);
    const device = ref.major === this.#major ? this.#byMinor.get(ref.minor) : undefined;
    return device?.deleting ? undefined : device;
  }
}

export const byName = (a: Pick<Indexed, 'storedName'>, b: Pick<Indexed, 'storedName'>) =>
  Buffer.compare(Buffer.from(a.storedName), Buffer.from(b.storedName));

function describe(ref: DeviceRef): string {
  if ('name' in ref) return `"${ref.name}"`;
  if ('uuid' in ref) return `with the uuid "${ref.uuid}"`;
  return `${ref.major}:${ref.minor}`;
}

function checkName(name: string): void {
  const reserved = name === '' || name === '.' || name === '..' || name === 'control';
  // Half a surrogate pair has no UTF-8: such a name could never be printed, nor typed.
  if (reserved || /[/\0\p{Surrogate}]/u.test(name) || Buffer.byteLength(name) > NAME_BYTES_MAX)
    throw new DmError('NAME_INVALID', 'EINVAL', `Cannot name a mapped device "${name}"`, {
      hint: `1 to ${NAME_BYTES_MAX} bytes of text, without "/", and neither ".", ".." nor "control"`,
    });
}

function checkUuid(uuid: string): void {
  if (Buffer.byteLength(uuid) > UUID_BYTES_MAX || /[\0\p{Surrogate}]/u.test(uuid))
    throw new DmError('UUID_INVALID', 'EINVAL', `Cannot take the uuid "${uuid}": at most ${UUID_BYTES_MAX} bytes`);
}

const inUse = (code: 'NAME_IN_USE' | 'UUID_IN_USE', text: string, hint?: string) =>
  new DmError(code, 'EBUSY', `Cannot take the ${text}: another mapped device has it`, { hint });
