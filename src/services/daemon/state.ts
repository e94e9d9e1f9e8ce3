import type { SavedDevice } from '../../mapper/saved-device.ts';
import type { SavedRecord } from '../fork/records.ts';

/** What the daemon keeps over a restart. */
export interface State {
  major: number;
  devices: SavedDevice[];
  /** Of forks, pools and volumes. */
  forks: SavedRecord[];
}

/** Linux keeps major numbers in 12 bits. */
const MAJOR_MAX = 4095;

type Fields = Record<string, unknown>;

/** Why this cannot be such a state, in words; undefined if it can. The file may have been edited, or damaged. */
export function stateFault(state: unknown): string | undefined {
  const { major, devices, forks } = fields(state);
  if (!Number.isInteger(major) || (major as number) < 1 || (major as number) > MAJOR_MAX)
    return `its major number is ${JSON.stringify(major)}`;
  if (!Array.isArray(devices)) return 'it has no list of devices';
  if (!Array.isArray(forks)) return 'it has no list of forks';
  for (const [index, device] of devices.entries())
    if (!isDevice(fields(device))) return `device ${index} in it is ${shortened(device)}`;
  for (const [index, fork] of forks.entries())
    if (!isRecord(fields(fork))) return `fork ${index} in it is ${shortened(fork)}`;
}

const isDevice = ({ name, uuid, minor, table }: Fields) =>
  isText(name) && isText(uuid) && Number.isInteger(minor) && (table === undefined || isTable(table));

const isTable = (table: unknown) =>
  Array.isArray(table) &&
  table
    .map(fields)
    .every(({ start, length, type, args }) => isSector(start) && isSector(length) && isText(type) && isText(args));

const isRecord = (record: Fields) => {
  if (!isText(record.uuid)) return false;
  if (record.role === 'pool') return isPool(record);
  if (record.role === 'volume') return isVolume(record);
  return isFork(record);
};

const isPool = ({ data, metadata, owned, autoextend }: Fields) =>
  isText(data) &&
  (metadata === undefined || isText(metadata)) &&
  Array.isArray(owned) &&
  owned.every(isText) &&
  (autoextend === undefined || isAutoextend({ ...fields(autoextend), chunkSize: 1 }));

const isVolume = ({ pool, poolUuid, id, origin }: Fields) =>
  isSector(pool) && isText(poolUuid) && isSector(id) && (origin === undefined || isText(origin));

const isFork = ({ role, image, cow, merging, autoextend }: Fields) =>
  (role === 'fork' || role === 'origin') &&
  isText(image) &&
  (cow === undefined || isText(cow)) &&
  (merging === undefined || isMerging(fields(merging))) &&
  (autoextend === undefined || isAutoextend(fields(autoextend)));

const isAutoextend = ({ threshold, percent, chunkSize, limit }: Fields) =>
  [threshold, percent, chunkSize, limit ?? 1].every((value) => Number.isInteger(value) && (value as number) > 0);

const isMerging = ({ name, cow, chunkSize, exceptions }: Fields) =>
  isText(name) && isText(cow) && isSector(chunkSize) && isSector(exceptions);

const isText = (value: unknown) => typeof value === 'string';
const isSector = (value: unknown) => typeof value === 'number' && value >= 0;

const fields = (value: unknown): Fields => (typeof value === 'object' && value !== null ? (value as Fields) : {});

const shortened = (value: unknown) => {
  const text = JSON.stringify(value);
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
};
