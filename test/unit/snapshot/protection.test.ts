/** Whether an origin write may go ahead is asked in two ways, one of which makes copies: they agree in every state. */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { prng } from '../../../src/lib/prng.ts';
import { PersistentStore } from '../../../src/stores/exception/persistent.ts';
import { TransientStore } from '../../../src/stores/exception/transient.ts';
import { Exceptions } from '../../../src/targets/snapshot/exceptions.ts';
import { ScriptedDevice } from '../../../src/testing/scripted-device.ts';
import { SECTOR, sector } from '../../../src/units.ts';
import { turns } from '../../support/rig.ts';

const CHUNK = 4;
/** The last chunk is cut short, and the snapshot goes on behind it. */
const ORIGIN = 62;
const SIZE = 72;

test.each(['P', 'N'])('%s: a write is protected exactly when there is nothing to do for it', async (kind) => {
  const seen = { yes: 0, no: 0, invalid: 0, resetting: 0 };
  for (let seed = 1; seed <= 150; seed++) {
    const random = prng(seed);
    const origin = new ScriptedDevice(new MemoryDevice(ORIGIN * SECTOR));
    const cow = new ScriptedDevice(new MemoryDevice(random.pick([40, 200]) * SECTOR));
    const store =
      kind === 'P' ? await PersistentStore.open(cow, sector(CHUNK)) : new TransientStore(cow, sector(CHUNK));
    const exceptions = new Exceptions(store, origin, cow);
    const { io, protection } = exceptions;
    const share = random.pick([0, 0.3, 0.8]);
    for (const disk of [origin, cow]) disk.hold = () => random.next() < share;
    let under = 0;
    // What was refused, as invalid or full, is not the matter here.
    const start = async (operation: () => unknown) => {
      under++;
      await (async () => operation())().catch(() => {});
      under--;
    };
    const data = Buffer.alloc(SIZE * SECTOR);
    for (let step = 0; step < 60; step++) {
      const at = random.below(SIZE - 8);
      const range = [at * SECTOR, (1 + random.below(8)) * SECTOR] as const;
      const action = random.next();
      if (action < 0.35 && exceptions.resetting) await turns(1);
      else if (action < 0.15)
        void start(() => io.read(range[0], data, 0, Math.min(range[1], ORIGIN * SECTOR - range[0])));
      else if (action < 0.3) void start(() => io.write(range[0], data, 0, range[1]));
      else if (action < 0.32) void start(() => exceptions.flush());
      // A snapshot that is reset is suspended.
      else if (action < 0.34 && under === 0) void start(() => exceptions.reset(async () => {}));
      else if (action < 0.35) void start(() => exceptions.becomeInvalid());
      else if (action < 0.6) {
        const disk = random.pick([origin, cow]);
        if (disk.waiting > 0) disk.go(random.below(disk.waiting));
        await turns(1);
      } else {
        const asked = origin.log.length + cow.log.length;
        const free = protection.isProtected(...range);
        const wait = protection.protect(...range);
        if (free) expect(wait).toBeUndefined();
        if (free) expect(origin.log.length + cow.log.length).toBe(asked);
        if (!wait) expect(protection.isProtected(...range)).toBe(true);
        seen[free ? 'yes' : 'no']++;
        if (!store.valid) seen.invalid++;
        if (exceptions.resetting) seen.resetting++;
      }
    }
    origin.go();
    cow.go();
    while (under > 0) await turns(1);
    for (let wait = protection.protect(0, SIZE * SECTOR); wait; ) {
      await wait;
      wait = protection.protect(0, SIZE * SECTOR);
    }
    expect(protection.isProtected(0, SIZE * SECTOR)).toBe(true);
    await exceptions.close();
  }
  for (const [what, times] of Object.entries(seen)) expect([what, times > 10]).toEqual([what, true]);
});
