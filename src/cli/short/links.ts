import { lstatSync, readlinkSync, symlinkSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DmError } from '../../api/index.ts';
import { THIN_TOOLS } from '../thin/tools.ts';
import { define } from './command.ts';

/** What the program is when it is called so. */
export const LINKS = ['dmsetup', 'devmap_name', 'dmstats', ...Object.keys(THIN_TOOLS)];

const PROGRAM = fileURLToPath(new URL('../../../bin/dmkit', import.meta.url));

export const command = define({
  name: 'links',
  operands: 'DIR',
  summary: 'Makes symlinks in a directory, so that scripts run unchanged with it in PATH.',
  help: `They are called ${LINKS.slice(0, 5).join(', ')},\n${LINKS.slice(5).join(', ')}.`,
  async run({ operands: [directory], io }) {
    const paths = LINKS.map((name) => resolve(io.cwd, join(directory, name)));
    // All or none: a directory with a real dmsetup in it is left alone.
    const wrong = paths.find((path) => !isFree(path) && !isOurs(path));
    if (wrong)
      throw new DmError('LINK_EXISTS', 'EEXIST', `Cannot make the link ${wrong}: it exists and leads elsewhere`, {
        hint: 'give a directory of its own, such as /usr/local/lib/dmkit/bin, and put it first in PATH',
      });
    for (const path of paths) {
      try {
        if (isFree(path)) symlinkSync(PROGRAM, path);
      } catch (error) {
        throw new DmError('LINK_FAILED', 'EIO', `Cannot make the link ${path}: ${(error as Error).message}`);
      }
      io.stdout.write(`${path}\n`);
    }
  },
});

function isFree(path: string): boolean {
  try {
    lstatSync(path);
    return false;
  } catch {
    return true;
  }
}

function isOurs(path: string): boolean {
  try {
    return readlinkSync(path) === PROGRAM;
  } catch {
    return false;
  }
}
