/**
 * A device argument with a slash is a path: of a node in the mapper directory, of a kernel node (`/dev/dm-3`), of a
 * link to either, or of a logical volume (`/dev/vg/lv`), with or without `/dev/` in front. Nodes need not exist: a
 * mapped device has its path as soon as it has its name.
 */
import { readlink, realpath } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import type { Control, DeviceInfo } from '../../api/index.ts';
import type { CommandIo } from '../command-io.ts';

const deviceDirectory = (env: Record<string, string | undefined>) => env.DM_DEV_DIR?.replace(/\/+$/, '') || '/dev';

/** The path of the node of a mapped device. */
export const nodePath = (env: Record<string, string | undefined>, name: string) =>
  `${deviceDirectory(env)}/mapper/${name}`;

/** The stored name of the device that a path means, or undefined. */
export async function deviceOfPath(
  path: string,
  { env, cwd }: CommandIo,
  control: () => Promise<Control>,
): Promise<string | undefined> {
  const directory = deviceDirectory(env);
  const candidates = [resolve(cwd, path)];
  // `vg/lv`, `mapper/name`: exactly one slash, not at either end.
  if (/^[^./][^/]*\/[^/]+$/.test(path)) candidates.push(`${directory}/${path}`);
  const devices = await (await control()).list();
  for (const candidate of candidates) {
    const found = find(candidate, directory, devices) ?? find(await target(candidate), directory, devices);
    if (found) return found.name;
  }
  return undefined;
}

/** Where a link leads, also to a node that does not exist. */
async function target(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch {
    return readlink(path).then(
      (link) => resolve(dirname(path), link),
      () => path,
    );
  }
}

function find(path: string, directory: string, devices: readonly DeviceInfo[]): DeviceInfo | undefined {
  if (!path.startsWith(`${directory}/`)) return undefined;
  const words = path.slice(directory.length + 1).split('/');
  if (words.length === 1) {
    const minor = /^dm-(\d+)$/.exec(words[0])?.[1];
    return devices.find((device) => minor !== undefined && device.minor === Number(minor));
  }
  if (words.length !== 2) return undefined;
  const double = (word: string) => word.replaceAll('-', '--');
  const name = words[0] === 'mapper' ? words[1] : `${double(words[0])}-${double(words[1])}`;
  return devices.find((device) => device.name === name);
}
