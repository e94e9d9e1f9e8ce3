import type { ShortCommand } from './command.ts';

/** Loaded one at a time: a command starts as fast as its own file. */
export const COMMANDS: Readonly<Record<string, { summary: string; load: () => Promise<{ command: ShortCommand }> }>> = {
  fork: {
    summary: 'make a writable copy of an image or a volume, however large, at once',
    load: () => import('./fork.ts'),
  },
  ls: { summary: 'list forks, volumes, pools and every other mapped device', load: () => import('./ls.ts') },
  uri: { summary: 'print the NBD URI of a device', load: () => import('./uri.ts') },
  attach: { summary: 'make a real block device of a device', load: () => import('./attach.ts') },
  detach: { summary: 'take the block device away again', load: () => import('./detach.ts') },
  diff: { summary: 'show what differs between a fork and what it was made from', load: () => import('./diff.ts') },
  watch: { summary: 'print what happens to devices, as it comes', load: () => import('./watch.ts') },
  revert: { summary: 'make a fork equal to its origin again', load: () => import('./revert.ts') },
  merge: { summary: 'put what a fork changed into its image', load: () => import('./merge.ts') },
  drop: { summary: 'remove a fork and its COW file, a volume, a pool', load: () => import('./drop.ts') },
  'pool create': { summary: 'make a pool of space for volumes', load: () => import('../pool/create.ts') },
  'pool open': { summary: 'open a pool that is there already', load: () => import('../pool/open.ts') },
  'pool extend': { summary: 'give a pool more space', load: () => import('../pool/extend.ts') },
  'pool volume': { summary: 'make a volume in a pool', load: () => import('../pool/volume.ts') },
  inspect: { summary: 'say what a file holds: a COW store, a pool, an image', load: () => import('./inspect.ts') },
  'replay-log': {
    summary: 'repeat what a log-writes target logged, up to a mark or a flush',
    load: () => import('./replay-log.ts'),
  },
  'thin check': { summary: 'say whether the metadata of a thin pool is whole', load: () => import('../thin/check.ts') },
  'thin dump': { summary: 'print the metadata of a thin pool as XML', load: () => import('../thin/dump.ts') },
  'thin restore': { summary: 'make metadata from that XML', load: () => import('../thin/restore.ts') },
  'thin repair': { summary: 'make metadata from what can be read', load: () => import('../thin/repair.ts') },
  'thin ls': { summary: 'list the thin devices of a pool', load: () => import('../thin/ls.ts') },
  'thin delta': { summary: 'print what differs between two thin devices', load: () => import('../thin/delta.ts') },
  'thin metadata-size': {
    summary: 'say how large metadata has to be',
    load: () => import('../thin/metadata-size.ts'),
  },
  up: { summary: 'start the daemon', load: () => import('./up.ts') },
  down: { summary: 'stop the daemon; its devices come back with the next start', load: () => import('./down.ts') },
  links: { summary: 'make links so that scripts find dmsetup', load: () => import('./links.ts') },
  demo: { summary: 'show and check all this on an image of its own', load: () => import('./demo.ts') },
};
