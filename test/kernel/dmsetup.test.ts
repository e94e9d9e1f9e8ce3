/**
 * The transcript that the unit tests hold dmkit to is what the real dmsetup prints on a real kernel. Needs what
 * vm/build.sh installs; takes minutes.
 *
 * The guest's disks are loop devices, and its major number is what its kernel gave; both are translated.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { cases, type Step } from '../support/transcript.ts';
import { Kernel } from './vm/vm.ts';

let kernel: Kernel;
let major: string;

beforeAll(async () => {
  kernel = await Kernel.boot();
  const disks = [0, 1, 2].map((i) => `truncate -s 64M /tmp/disk${i} && losetup /dev/loop${i} /tmp/disk${i} || exit 1`);
  await kernel.run(disks.join('\n'));
  major = (await kernel.run('sed -n "s/ device-mapper$//p" /proc/devices')).trim();
});
afterAll(() => kernel?.close());

const forGuest = (text: string) =>
  text
    .replaceAll('254', major)
    .replace(/(?<![\d:])1:(?=[012]\b)/g, '7:')
    .replace(/\bram(?=[012]\b)/g, 'loop');
const fromGuest = (text: string) =>
  text
    .replaceAll(major, '254')
    .replace(/(?<![\d:])7:(?=[012]\b)/g, '1:')
    .replace(/\(7, (?=[012]\))/g, '(1, ')
    .replace(/\bloop(?=[012]\b)/g, 'ram');
const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;

/** The help, whose wording is our own, and a complaint that is not to be copied. */
const withoutHelp = (stderr: string) =>
  stderr
    .replace(/^\/dev\/mapper\/.*: open failed: .*\n/gm, '')
    .replace(/Usage:\n\ndmsetup( stats)?\n[\s\S]*?(?=Mapped Device Name Fields|Command failed\.|$)/, '<usage>\n')
    .replace(/Mapped Device Name Fields\n[\s\S]*?Special Fields\n[\s\S]*?\n \n/, '<fields>\n')
    .replace(/Selection operands\n[\s\S]*?List subset end\n \n/, '<selection>\n');

async function play(index: number): Promise<Step[]> {
  const { steps } = cases[index];
  const clean =
    'for k in 1 2 3 4; do dmsetup resume --manglename none -S suspended=Suspended; dmsetup remove_all --force; done; [ "$(dmsetup ls)" = \'No devices found\' ] || exit 1';
  const commands = steps.map(({ argv, stdin = '', env = {} }, i) => {
    const set = Object.entries(env).map(([key, value]) => `${key}=${quoted(value)}`);
    const words = argv.map((word) => quoted(forGuest(word))).join(' ');
    const out = `/tmp/r/${index}.${i}`;
    return `printf %s ${quoted(stdin)} >/tmp/in; env ${set.join(' ')} dmsetup ${words} </tmp/in >${out}.o 2>${out}.e; echo $? >${out}.s`;
  });
  const gather = `cd /tmp/r && for i in $(seq 0 ${steps.length - 1}); do for x in s o e; do base64 -w 0 ${index}.$i.$x; echo; done; done`;
  const output = await kernel.run(
    [
      'export DM_DISABLE_UDEV=1 LC_ALL=C; mkdir -p /tmp/r; exec 3>&1 >/tmp/noise 2>&1',
      clean,
      ...commands,
      clean,
      'exec >&3',
      gather,
    ].join('\n'),
  );
  const lines = output.split('\n').map((line) => Buffer.from(line, 'base64').toString());
  return steps.map(({ argv, stdin, env }, i) => ({
    argv,
    ...(stdin && { stdin }),
    ...(env && { env }),
    status: Number(lines[3 * i]),
    stdout: fromGuest(lines[3 * i + 1]),
    stderr: withoutHelp(fromGuest(lines[3 * i + 2])),
  }));
}

/** A loop device has a longer name than a RAM disk, so columns that show names are padded otherwise. */
const unpadded = (step: Step) =>
  /\bram[012]\b/.test(step.stdout) ? { ...step, stdout: step.stdout.replace(/ +/g, ' ').replace(/ $/gm, '') } : step;

test.each(cases.map(({ title }, index) => [title, index] as const))('%s', async (_, index) => {
  expect((await play(index)).map(unpadded)).toEqual(cases[index].steps.map(unpadded));
});
