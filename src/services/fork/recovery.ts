/** After a restart: what a crash cut short and nobody was told of. */
import type { SavedDevice } from '../../mapper/saved-device.ts';

interface Droppable {
  readonly uuid: string;
  dropping?: 'delete' | 'keep';
}

/**
 * Tidies up after those records whose device was never ready, or was being dropped and is gone. `saved`: the devices that the restart was
 * given. `tidy` removes the device that was not ready, and the rest; it resolves with the file that it deleted. Returns what was done, in
 * words; `what`: of what kind. Never throws.
 */
export async function recover<R extends Droppable>(
  records: readonly R[],
  saved: readonly SavedDevice[],
  what: string,
  tidy: (record: R, unfinished?: SavedDevice) => Promise<string | undefined>,
): Promise<string[]> {
  const done: string[] = [];
  for (const record of records) {
    const device = saved.find(({ uuid }) => uuid === record.uuid);
    // Only a device that was never resumed has no table and no note of why.
    const unfinished = device !== undefined && device.table === undefined && device.note === undefined;
    const gone = device === undefined && record.dropping !== undefined;
    if (!unfinished && !gone) {
      delete record.dropping;
      continue;
    }
    try {
      const deleted = await tidy(record, unfinished ? device : undefined);
      const words = unfinished ? `${device.name} was never ready: removed` : `finished the drop of a ${what}`;
      done.push(deleted === undefined ? words : `${words}, and deleted ${deleted}`);
    } catch (error) {
      done.push(`cannot tidy up after ${device?.name ?? record.uuid}: ${(error as Error).message}`);
    }
  }
  return done;
}
