import type { DeviceInfo } from '../../mapper/control.ts';
import { splitWords } from '../../targets/arguments.ts';
import { SECTOR } from '../../units.ts';
import { fillOf } from '../events/fill.ts';
import type { Book } from '../pool/book.ts';
import { statusOf } from '../pool/pool-status.ts';
import type { MergeProgress, Volume } from './fork-control.ts';
import type { Images } from './images.ts';

/** A device as `dmkit ls` shows it. `uri`: where it is served; `merge`: what runs on it. */
export async function volumeOf(
  images: Images,
  book: Book,
  info: DeviceInfo,
  { uri, merge }: { uri?: string; merge?: MergeProgress },
): Promise<Volume> {
  const { name, size, readOnly, openCount, note } = info;
  const tables = await images.mapper.table({ name });
  const [status] = await images.mapper.status({ name });
  const volume: Volume = {
    name,
    type: [...new Set(tables.map(({ type }) => type))].join(','),
    size,
    state: !info.live ? 'no table' : info.suspended ? 'suspended' : 'active',
    readOnly,
    openCount,
    note,
  };
  if (info.live) volume.uri = uri;
  const [table] = tables;
  if (!table) {
    const record = images.recordOf(info, 'fork') ?? images.recordOf(info, 'origin');
    if (record) Object.assign(volume, { origin: record.image, cow: record.cow });
    addLost(volume, book, info);
  } else if (table.type === 'snapshot' || table.type === 'snapshot-merge') {
    [volume.origin, volume.cow] = splitWords(table.text);
    const fill = fillOf(status.text);
    if (fill) {
      volume.used = fill.allocated - fill.metadata;
      volume.cowSize = fill.total;
    } else volume.state = status.text;
    const grows = images.recordOf(info, 'fork')?.autoextend;
    if (grows) volume.autoextend = { threshold: grows.threshold, percent: grows.percent, limit: grows.limit };
    // The words of a table that had overflowed say nothing of its merge.
    if (merge?.state === 'merging') volume.note ??= merge.error;
    if (merge?.state === 'merging' && !info.suspended) volume.state = `merging ${merge.name} ${percent(merge)}%`;
  } else if (table.type === 'snapshot-origin') [volume.origin] = splitWords(table.text);
  else if (table.type === 'thin') addThin(volume, book, status.text);
  else if (table.type === 'thin-pool') addPool(volume, book);
  if (book.isPart(info)) volume.internal = true;
  return volume;
}

/** Of a pool or a volume that has no table. */
function addLost(volume: Volume, book: Book, info: DeviceInfo): void {
  const pool = book.poolRecord(info);
  if (pool) volume.note = book.noteOf(pool) ?? volume.note;
  const record = book.volumeRecord(info);
  if (record) Object.assign(volume, { pool: book.poolOf(record)?.storedName, id: record.id });
}

function addThin(volume: Volume, book: Book, status: string): void {
  const device = book.mapper.device({ name: volume.name });
  const thin = book.thin(device);
  if (!thin) return;
  volume.pool = thin.pool.storedName;
  volume.id = thin.id;
  volume.origin = book.originOf(device);
  if (status === 'Fail') volume.state = status;
  else volume.used = Number(status.split(' ')[0]) * SECTOR;
}

function addPool(volume: Volume, book: Book): void {
  const device = book.mapper.device({ name: volume.name });
  const status = statusOf(device);
  volume.note ??= book.warningOf(device);
  if (!status) volume.state = 'Fail';
  else {
    volume.used = status.dataUsed;
    volume.metadataSize = status.metadataSize;
    volume.metadataUsed = status.metadataUsed;
    if (status.needsCheck) volume.state = 'needs check';
    else if (status.mode === 'out_of_data_space') volume.state = 'full';
    else if (status.mode === 'ro') volume.readOnly = true;
  }
  const grows = book.poolRecord(device)?.autoextend;
  if (grows) volume.autoextend = { threshold: grows.threshold, percent: grows.percent, limit: grows.limit };
}

/** 100 only when it is done. */
const percent = ({ total, merged }: MergeProgress) => (total === 0 ? 100 : Math.floor((merged / total) * 100));
