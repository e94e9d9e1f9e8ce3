import { basename } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { isDaemonGone, type WatchEvent, watchEvents } from '../../api/index.ts';
import { define } from './command.ts';
import { printSize } from './sizes.ts';

/** Between two looks whether the daemon is back. */
const RETRY_MS = 250;

type Told = WatchEvent | { time: string; event: 'end' };

export const command = define({
  name: 'watch',
  operands: '[NAME…]',
  summary: 'Prints what happens to devices, as it comes, until it is interrupted.',
  help: `The kernel's events (those that dmsetup wait waits for), and what the kernel has none for: how
full COW files are in steps of 5%, overflows, merges, COW files that grow, devices that come
and go. With NAMEs only those devices, through renames. Outlives a restart of the daemon.`,
  options: { json: { help: 'print an object on a line for each event (docs/events.md)' } },
  async run({ operands, options, io }) {
    const { signal } = io;
    const names = new Set(operands);
    const show = (told: Told) => {
      if (names.size > 0 && 'device' in told && !names.has(told.device)) {
        if (told.event !== 'rename' || !names.has(told.from)) return;
        names.add(told.device);
      }
      io.stdout.write(`${options.json === undefined ? lineOf(told) : JSON.stringify(told)}\n`);
    };
    const daemon = await io.control();
    const known = new Set((await daemon.list()).map(({ name }) => name));
    for (const name of names)
      if (!known.has(name)) io.stderr.write(`dmkit watch: there is no device ${JSON.stringify(name)} yet\n`);
    for (let isThere = true; !signal?.aborted; ) {
      try {
        for await (const told of watchEvents(daemon, { signal })) {
          isThere = true;
          show(told);
        }
      } catch (error) {
        if (!isDaemonGone(error)) throw error;
        if (isThere) show({ time: new Date().toISOString(), event: 'end' });
        isThere = false;
        await pause(RETRY_MS, undefined, { signal }).catch(() => {});
      }
    }
  },
});

function lineOf(told: Told): string {
  const device = 'device' in told ? `${told.device}: ` : '';
  return `${localTime(new Date(told.time))}  ${device}${textOf(told)}`;
}

/** `2026-05-17 09:30:00` where the reader is. */
function localTime(time: Date): string {
  const two = (number: number) => String(number).padStart(2, '0');
  const date = [time.getFullYear(), time.getMonth() + 1, time.getDate()].map(two).join('-');
  return `${date} ${[time.getHours(), time.getMinutes(), time.getSeconds()].map(two).join(':')}`;
}

function textOf(told: Told): string {
  const cow = 'cow' in told ? basename(told.cow) : '';
  switch (told.event) {
    case 'begin':
      return 'watching';
    case 'end':
      return 'the daemon has ended; waiting for the next one';
    case 'lost':
      return 'events were lost: they came faster than they could be printed';
    case 'create':
      return 'created';
    case 'table':
      return 'has a new table';
    case 'suspend':
      return 'suspended';
    case 'resume':
      return 'resumed';
    case 'change':
      return 'changed';
    case 'remove':
      return 'removed';
    case 'rename':
      return `renamed, it was ${told.from}`;
    case 'table-event':
      return `event ${told.number}`;
    case 'fill':
      return `${cow} is ${told.percent}% full, ${printSize(told.used)} of ${printSize(told.size)}`;
    case 'overflow':
      return `overflowed: ${cow} is full, and it can only be read`;
    case 'invalid':
      return `became invalid: ${cow} is full or failed; the origin is intact`;
    case 'merge':
      return `${told.percent}% of ${cow} are merged, ${printSize(told.left)} left`;
    case 'merge-done':
      return `${cow} is merged`;
    case 'merge-failed':
      return `the merge of ${cow} failed`;
    case 'extend':
      return `${cow} grew from ${printSize(told.from)} to ${printSize(told.size)}`;
    case 'pool-fill':
      return `its ${told.part} is ${told.percent}% full, ${printSize(told.used)} of ${printSize(told.size)}`;
    case 'pool-state':
      return `the pool is ${told.state}`;
    case 'pool-extend':
      return `its ${told.part} grew from ${printSize(told.from)} to ${printSize(told.size)}`;
    case 'pool-extend-failed':
      return `the pool did not grow: ${told.message}`;
    case 'extend-failed':
      return `${cow} did not grow: ${told.message}`;
  }
}
