/** What `ls --tree -o` understands. */
import { CommandFailure } from '../failure.ts';

export interface TreeOptions {
  readonly device: boolean;
  readonly blkdevname: boolean;
  readonly active: boolean;
  readonly open: boolean;
  readonly rw: boolean;
  readonly uuid: boolean;
  readonly symbols: 'ascii' | 'utf' | 'vt100';
  readonly compact: boolean;
  readonly inverted: boolean;
  readonly truncate: boolean;
}

/** Any prefix will do; the first that fits in this order is meant. */
const WORDS = [
  'device',
  'blkdevname',
  'nodevice',
  'status',
  'table',
  'active',
  'open',
  'uuid',
  'rw',
  'utf',
  'vt100',
  'ascii',
  'inverted',
  'compact',
  'notrunc',
] as const;

/** Throws a CommandFailure for a word that is none of them. */
export function parseTreeOptions(list: string | undefined, env: Record<string, string | undefined>): TreeOptions {
  const chosen = new Set<(typeof WORDS)[number]>();
  for (const typed of (list ?? '').split(',')) {
    if (typed === '') continue;
    const word = WORDS.find((candidate) => candidate.startsWith(typed));
    if (!word) throw new CommandFailure(`Tree options not recognised: ${typed}.`);
    chosen.add(word);
  }
  const attributes = { active: chosen.has('active'), open: chosen.has('open'), rw: chosen.has('rw') };
  const uuid = chosen.has('uuid');
  const shown = attributes.active || attributes.open || attributes.rw || uuid;
  return {
    ...attributes,
    uuid,
    device: !chosen.has('nodevice'),
    blkdevname: chosen.has('blkdevname'),
    symbols: chosen.has('ascii')
      ? 'ascii'
      : chosen.has('utf')
        ? 'utf'
        : chosen.has('vt100')
          ? 'vt100'
          : isUtf8(env)
            ? 'utf'
            : 'ascii',
    compact: chosen.has('compact') && !shown,
    inverted: chosen.has('inverted'),
    truncate: !chosen.has('notrunc'),
  };
}

function isUtf8(env: Record<string, string | undefined>): boolean {
  const locale = env.LC_ALL || env.LC_CTYPE || env.LANG || '';
  return /\.utf-?8/i.test(locale);
}
