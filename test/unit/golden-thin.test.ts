/**
 * Thin pools of a real kernel (test/fixtures/kernel/thin): its commands give the same lines, errors and contents here, and its
 * images open with what it said of them.
 */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import type { DmError } from '../../src/errors.ts';
import { checkMetadata } from '../../src/stores/thin/check.ts';
import { bytes, SECTOR } from '../../src/units.ts';
import { Session } from '../support/session.ts';
import { loadImage, loadSteps, pattern, type Step, THIN_PATTERNS } from './golden.ts';

const steps = loadSteps('thin');

/** Sectors of the loop devices: metadata, data, external origin, and those of the second pool, data first. */
const SECTORS = [8192, 65536, 20520, 2560, 4096];
const KEPT: Record<string, number> = { 'meta.img': 0, 'data.img': 1, 'ext.img': 2, 'data2.img': 3, 'meta2.img': 4 };

function start(): Session {
  const session = new Session();
  for (const [i, sectors] of SECTORS.entries())
    session.loop(i, sectors, i === 2 ? pattern('a', 0, sectors, THIN_PATTERNS) : undefined);
  return session;
}

const ERRORS: Record<string, string> = {
  EEXIST: 'File exists',
  ENODATA: 'No data available',
  EINVAL: 'Invalid argument',
};

async function command(session: Session, { words, output, exit }: Extract<Step, { kind: 'command' }>): Promise<void> {
  const [program, verb, name, ...rest] = words;
  if (program === 'blkdiscard') {
    const number = (option: string) => Number(words[words.indexOf(option) + 1]);
    const device = session.mapper.device({ name: words.at(-1)!.replace('/dev/mapper/', '') });
    await device.discard(bytes(number('-o')), number('-l'));
  } else if (program === 'thin_check') {
    const report = await checkMetadata(session.disks.disks.get('7:0')!);
    expect(report.findings).toEqual([]);
    expect(output).toContain(`TRANSACTION_ID=${report.transactionId}`);
  } else if (verb === 'message') {
    const failed = await session.mapper.message({ name }, 0, rest.slice(1).join(' ')).then(
      () => undefined,
      (error) => error as DmError,
    );
    expect(failed === undefined ? 0 : 1, words.join(' ')).toBe(exit);
    if (failed) expect(output[0]).toMatch(new RegExp(`: ${ERRORS[failed.errno]}$`));
  } else await session.dmsetup(words.slice(1));
}

async function reportOf(image: Uint8Array) {
  const device = new MemoryDevice(image.length);
  device.write(bytes(0), image, 0, image.length);
  return checkMetadata(device);
}

test('repeated gives what the kernel printed, and what its disks held', async () => {
  const session = start();
  for (const step of steps) {
    if (step.kind === 'command') await command(session, step);
    else if (step.kind === 'put') {
      const content = pattern(step.tag, step.skip, step.count, THIN_PATTERNS);
      expect(await session.put(step.device, step.seek, content), JSON.stringify(step)).toBe(step.failed);
    } else if (step.kind === 'state') expect(await session.state(), step.label).toEqual(step.lines);
    else if (step.kind === 'sha256') expect(await session.sum(step.label), step.label).toBe(step.hash);
    else if (step.kind === 'keep') {
      const found = await session.content(KEPT[step.image]);
      const recorded = loadImage('thin', step.image);
      // The kernel commits when a second has passed: the same, elsewhere on the device.
      if (step.image === 'meta.img') expect(await reportOf(found)).toEqual(await reportOf(recorded));
      else expect(found.equals(recorded), step.image).toBe(true);
    }
  }
});

test('what the kernel left opens with its lines and sums', async () => {
  const session = new Session();
  for (const [image, i] of Object.entries(KEPT)) {
    const content = loadImage('thin', image);
    session.loop(i, content.length / SECTOR, content);
  }
  const end = steps.find((step) => step.kind === 'state' && step.label === 'end') as Extract<Step, { kind: 'state' }>;
  const created = steps.filter((step) => step.kind === 'command' && step.words[1] === 'create').slice(0, 5);
  for (const step of created) if (step.kind === 'command') await session.dmsetup(step.words.slice(1));
  expect(await session.state()).toEqual(end.lines);
  for (const step of steps)
    if (step.kind === 'sha256') expect(await session.sum(step.label), step.label).toBe(step.hash);
});
