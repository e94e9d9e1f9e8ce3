import { type DaemonControl, DmError, type Volume } from '../../api/index.ts';

/** `POOL/VOLUME`; undefined for anything else, such as `./pool/volume`. */
export function splitVolume(word: string): { pool: string; name: string } | undefined {
  const [, pool, name] = /^([0-9A-Za-z_@][^/]*)\/([^/]+)$/.exec(word) ?? [];
  return pool === undefined ? undefined : { pool, name };
}

/** The volume of a pool that the word names: `POOL/VOLUME`, its name, or `/dev/mapper/` before that. */
export function findVolume(volumes: readonly Volume[], word: string): Volume | undefined {
  const plain = word.replace(/^\/dev\/mapper\//, '');
  return volumes.find(({ name, pool }) => pool !== undefined && (name === plain || `${pool}/${name}` === word));
}

/** The device that the word names. Throws NO_DEVICE (ENXIO) if there is no such volume in that pool. */
export async function deviceName(daemon: Pick<DaemonControl, 'volumes'>, word: string): Promise<string> {
  if (!splitVolume(word)) return word;
  const volume = findVolume(await daemon.volumes(), word);
  if (volume) return volume.name;
  throw noVolume(word);
}

export const noVolume = (word: string) =>
  new DmError('NO_DEVICE', 'ENXIO', `There is no volume ${JSON.stringify(word)}`, { hint: 'look at: dmkit ls' });
