import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';

const ticks = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));

/** Seconds of CPU that a process, its threads and its children have used so far, in user mode and in the kernel. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // What follows the name, which may hold anything: state is the first, utime and stime are the 12th and 13th.
  const words = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  let seconds = (Number(words[11]) + Number(words[12])) / ticks;
  for (const thread of readdirSync(`/proc/${pid}/task`))
    for (const child of readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8').trim().split(' '))
      if (child !== '') seconds += cpuSeconds(Number(child));
  return seconds;
}
