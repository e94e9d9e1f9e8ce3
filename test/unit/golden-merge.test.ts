/**
 * The recorded merge (test/fixtures/kernel/merge): its store is made again to the same bytes, merged from the start, and
 * merged from where a real kernel was half-way through; the end is the kernel's, byte for byte.
 *
 * On the way bytes cannot be compared: how much is merged at a time is the merger's own choice.
 */
import { expect, it } from 'vitest';
import { ScriptedDevice } from '../../src/testing/scripted-device.ts';
import { Session } from '../support/session.ts';
import { loadSteps, pattern, type Step } from './golden.ts';
import { attach, expectImage, indexOfKeep, lineOf, replay } from './golden-replay.ts';

const folder = 'merge';
const SECTORS = 32768;
const COW = 24576;
const recorded = {
  folder,
  kept: { 'origin-before.img': 0, 'cow-before.img': 1, 'origin-after.img': 0, 'cow-after.img': 1 },
};
const steps = loadSteps(folder);

/** The lines about `name` of a recorded state. */
function stateOf(label: string, name: string): string[] {
  const state = steps.find((step) => step.kind === 'state' && step.label === label) as Step & { kind: 'state' };
  return state.lines.filter((line) => line.split(' ')[1] === `${name}:`);
}
const linesOf = async (session: Session, name: string) =>
  (await session.state()).filter((line) => line.split(' ')[1] === `${name}:`);
const sumOf = (label: string) =>
  steps.filter((step) => step.kind === 'sha256').find((step) => step.label === label)!.hash;

const TABLE = `0 ${SECTORS} snapshot-merge /dev/mapper/base-real /dev/loop1 P 16`;
/** From the one write made after the kernel had been caught half-way to the end of the log. */
const ending = steps.slice(steps.findLastIndex(({ kind }) => kind === 'put'));
const [lastPut] = ending as (Step & { kind: 'put' })[];

/** Disks whose first holds back every write until it is told to go on: a merge over it does not get far. */
async function attachHeld(images: readonly string[]): Promise<{ session: Session; origin: ScriptedDevice }> {
  const disks: ScriptedDevice[] = [];
  const session = await attach(folder, images, (disk) => {
    disks.push(new ScriptedDevice(disk));
    return disks.at(-1)!;
  });
  const [origin] = disks;
  origin.hold = (operation) => operation === 'write';
  return { session, origin };
}

it('has a log of which every line is understood', () => {
  const count = (kind: Step['kind']) => steps.filter((step) => step.kind === kind).length;
  expect([count('put'), count('poll'), count('state')]).toEqual([142, 5, 3]);
  expect([count('sha256'), count('keep'), count('command')]).toEqual([3, 6, 15]);
});

it('the writes before it, repeated, give what the kernel printed and wrote', async () => {
  const session = new Session();
  session.loop(0, SECTORS, pattern('a', 0, SECTORS));
  session.loop(1, COW);
  await replay(session, steps.slice(0, indexOfKeep(steps, 'origin-before.img') + 1), recorded);
});

it.each(['before', 'half'])('a snapshot table over the store as it was %s shows the whole snapshot', async (when) => {
  const session = await attach(folder, [`origin-${when}.img`, `cow-${when}.img`]);
  await session.dmsetup(['create', 'snap', '--table', TABLE.replace('snapshot-merge', 'snapshot')]);
  expect(await session.sum('snap')).toBe(sumOf('snap'));
  await session.close();
  await expectImage(session, folder, `cow-${when}.img`, 1);
});

it("the kernel's half merge has the kernel's table and status lines, and comes to the same end", async () => {
  const { session, origin } = await attachHeld(['origin-half.img', 'cow-half.img']);
  await session.dmsetup(['create', 'base', '--table', TABLE]);
  await origin.held(1);
  expect(await linesOf(session, 'base')).toEqual(stateOf('half-merged', 'base'));
  expect(await session.sum('base')).toBe(sumOf('snap'));
  const { device, seek, tag, skip, count } = lastPut;
  const put = session.put(device, seek, pattern(tag, skip, count));
  origin.go();
  expect(await put).toBeUndefined();
  await session.merged('base');
  await replay(session, ending.slice(1), recorded);
});

it('a merge from its start comes to the same end', async () => {
  const { session, origin } = await attachHeld(['origin-before.img', 'cow-before.img']);
  await session.dmsetup(['create', 'base', '--table', TABLE]);
  await origin.held(1);
  const [, status] = stateOf('before-merge', 'snap');
  expect(await lineOf(session, 'status', 'base')).toBe(
    status.replace('snap: 0 32768 snapshot', 'base: 0 32768 snapshot-merge'),
  );
  expect(await session.sum('base')).toBe(sumOf('snap'));
  origin.go();
  await session.merged('base');
  await replay(session, ending, recorded);
});

it('a merge that takes over from the snapshot in use comes to the same end', async () => {
  const session = await attach(folder, ['origin-before.img', 'cow-before.img']);
  const begin = `0 ${SECTORS} snapshot-origin /dev/mapper/base-real`;
  await session.dmsetup(['create', 'snap', '--table', TABLE.replace('snapshot-merge', 'snapshot')]);
  await session.dmsetup(['create', 'base', '--table', begin]);
  await session.dmsetup(['load', 'base', '--table', TABLE]);
  expect((await session.mapper.status({ name: 'base' }, { inactive: true }))[0].text).toBe(`0/${COW} 0`);
  for (const name of ['base', 'snap']) await session.dmsetup(['suspend', name]);
  await session.dmsetup(['resume', 'base']);
  await session.dmsetup(['resume', 'snap']);
  expect(await lineOf(session, 'status', 'snap')).toBe(`status snap: 0 ${SECTORS} snapshot Invalid`);
  await session.dmsetup(['remove', 'snap']);
  await session.merged('base');
  await replay(session, ending, recorded);
});
