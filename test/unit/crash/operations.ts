/** What is done to a stack beside reading and writing: each follows the order in which LVM2 does it. */
import { bytes, SECTOR } from '../../../src/units.ts';
import { Image } from './image.ts';
import { type Stack, turn } from './stack.ts';

/** A merge that has not ended after so many turns of the event loop never will. */
const TURNS_MAX = 20_000;

/** With the origin suspended, as the moment of the snapshot demands. */
export async function takeSnapshot(stack: Stack, slot: number): Promise<void> {
  const { model } = stack;
  await stack.settle();
  if (model.used.has(slot)) await wipe(stack, slot);
  if (!(await stack.suspend('base'))) return;
  try {
    await stack.create(`s${slot}`, stack.table(slot));
    // While a merge runs the origin itself is a mix of old and new; that is what the snapshot keeps.
    if (model.table === 'snapshot-origin') stack.expectOnOrigin();
    model.slots[slot] = Image.of(stack.raw());
  } finally {
    await stack.resume('base');
  }
}

/** So that the next store on the COW device is a new one. An empty one that a merge left may do as it is. */
async function wipe(stack: Stack, slot: number): Promise<void> {
  stack.note(`wipe the store on cow${slot}`);
  const cow = stack.cow(slot);
  await cow.write(bytes(0), new Uint8Array(SECTOR), 0, SECTOR);
  await cow.flush();
  stack.model.used.delete(slot);
}

export async function dropSnapshot(stack: Stack, slot: number): Promise<void> {
  await stack.settle();
  stack.note(`remove s${slot}`);
  const image = stack.model.slots[slot]!;
  stack.model.drop(slot);
  try {
    await stack.mapper.remove({ name: `s${slot}` });
  } catch (error) {
    stack.model.slots[slot] = image;
    throw error;
  }
}

/** Writes to the origin go on meanwhile; each is part of what the snapshot shows then, or is not. */
export async function revert(stack: Stack, slot: number): Promise<void> {
  const { model, random, options } = stack;
  const name = `s${slot}`;
  await stack.settle();
  // While a merge runs the origin's own content is known only where nobody writes to it.
  const still = model.table === 'snapshot-merge' || random.chance(0.3);
  if (!(await (still ? stack.suspend('base') : stack.flush('base')))) return;
  if (model.table === 'snapshot-origin') stack.expectOnOrigin();
  const image = Image.of(stack.raw());
  stack.note(`revert ${name}`);
  model.reverted.set(slot, image);
  const reverted = stack.mapper.revert({ name });
  for (let i = still ? 0 : random.below(4); i > 0; i--) {
    if (random.chance(0.3)) await turn();
    const sector = random.below(options.origin);
    stack.write('base', sector, 1 + random.below(Math.min(8, options.origin - sector)));
  }
  await reverted;
  await stack.settle();
  // Those writes may have filled its COW device again.
  const found = stack.isInvalid(name) ? [] : await stack.content(name);
  for (const [s, stamp] of found.entries()) {
    if (!image.isPossible(s, stamp))
      throw new Error(`${name}, reverted: sector ${s} holds ${stamp}, not one of ${image.possible(s)}`);
    // A write that the snapshot shares with its origin is not flushed yet; one that it was spared never comes.
    if (stamp === image.possible(s)[0]) image.found(s, stamp);
    else image.foundUnflushed(s, stamp);
  }
  model.slots[slot] = image;
  model.reverted.delete(slot);
  if (still) await stack.resume('base');
}

/** Hands the snapshot's store over to the origin's device. Writes to it may wait for the handover. */
export async function startMerge(stack: Stack, slot: number): Promise<void> {
  const { model, mapper, random } = stack;
  const name = `s${slot}`;
  await stack.settle();
  await stack.drain();
  if (stack.isInvalid(name)) return dropSnapshot(stack, slot);
  if (random.chance(0.2)) {
    // As at boot: no table to take over from.
    await stack.stop();
    model.merge(slot);
    return stack.start();
  }
  await stack.load('base', stack.table(slot, 'snapshot-merge'));
  if (random.chance(0.5)) {
    // The other way round, writers of the origin copy for a snapshot that is suspended.
    await stack.suspend(name);
    const writes = stack.options.cow === undefined ? random.below(3) : 0;
    for (let i = 0; i < writes; i++) writeSomewhere(stack, 'base');
    await stack.suspend('base');
  } else {
    await stack.suspend('base');
    await stack.suspend(name);
  }
  model.merge(slot);
  writeSomewhere(stack, 'base');
  await stack.resume('base');
  if (random.chance(0.5)) await stack.resume(name);
  await mapper.remove({ name });
}

/** The merge is given back to a plain snapshot table, or goes on from there. */
export async function togglePause(stack: Stack): Promise<void> {
  const { model } = stack;
  const table = model.table === 'snapshot' ? 'snapshot-merge' : 'snapshot';
  await swap(stack, 'base', stack.baseTable(table));
  model.table = table;
  // The list could not be cut, and the table to take it over from is gone: the device has to be made anew.
  if (stack.isInvalid('base')) await reopen(stack);
  // While it pauses, an error of its store would cost the image itself.
  stack.mend();
}

/** Loads a table and makes it live. What an error stopped half-way is completed when that is gone. */
async function swap(stack: Stack, name: string, line: string): Promise<void> {
  await stack.load(name, line);
  if (await stack.flushing(name, () => stack.resume(name))) return;
  stack.mend();
  if (!(await stack.flushing(name, () => stack.resume(name)))) throw new Error(`${name} does not resume`);
}

/** Every exception has left the list on the disk. */
function isMerged(stack: Stack): boolean {
  const area = new Uint8Array(SECTOR);
  stack.cow(stack.model.merging!).peek(stack.options.chunks[stack.model.merging!], 1, area);
  return area.subarray(8, 16).every((byte) => byte === 0);
}

/** Waits until everything is merged, and gives the origin its own table back. */
export async function finishMerge(stack: Stack): Promise<void> {
  const { model, random } = stack;
  await stack.repair();
  if (model.table === 'snapshot') await togglePause(stack);
  for (let turns = 0; !isMerged(stack); turns++) {
    if (stack.isStuck) await stack.goOn();
    if (turns % 50 === 49) stack.time.pass();
    if (turns > TURNS_MAX) throw new Error(`the merge does not end: ${stack.status('base')}`);
    await turn();
  }
  await stack.settle();
  stack.checkStates();
  if (random.chance(0.5)) await expectEmpty(stack);
  await swap(stack, 'base', 'snapshot-origin /dev/origin');
  const slot = model.merging!;
  model.merged();
  // The store is empty, and will do for the next snapshot.
  if (random.chance(0.5)) model.used.delete(slot);
  stack.expectOnOrigin();
}

/** `allocated == metadata`, as everybody polls it. */
async function expectEmpty(stack: Stack): Promise<void> {
  const chunk = stack.options.chunks[stack.model.merging!];
  for (let turns = 0; ; turns++) {
    const text = stack.status('base');
    if (text === 'Merge failed' || text === 'Overflow') return;
    if (text === `${2 * chunk}/${stack.cow(stack.model.merging!).size / SECTOR} ${2 * chunk}`) return;
    if (turns > TURNS_MAX) throw new Error(`merged, but the status is ${text}`);
    await turn();
  }
}

/** Suspends and resumes; a write waits meanwhile. */
export async function pause(stack: Stack, name = 'base'): Promise<void> {
  await stack.suspend(name);
  writeSomewhere(stack, name);
  await stack.resume(name);
}

/** Loads the table that is live: a snapshot hands its exceptions over to itself. A merge does not. */
export async function reload(stack: Stack, name: string): Promise<void> {
  const line = name === 'base' ? stack.baseTable() : stack.table(Number(name.slice(1)));
  if (name !== 'base' || stack.model.table !== 'snapshot-merge') return swap(stack, name, line);
  await stack.load(name, line).then(
    () => {
      throw new Error('a second merge was loaded');
    },
    () => {},
  );
}

export async function reopen(stack: Stack): Promise<void> {
  await stack.stop();
  await stack.start();
}

export function writeSomewhere(stack: Stack, name: string): void {
  const { random, options } = stack;
  const sector = random.below(options.origin);
  stack.write(name, sector, 1 + random.below(options.origin - sector));
}

/** Everything is repaired, merged, settled and as it should be, now and when opened again. */
export async function finish(stack: Stack): Promise<void> {
  await stack.repair();
  await stack.settle();
  if (stack.model.merging !== undefined) await finishMerge(stack);
  await stack.expectExact();
}
