import { expect, test } from 'vitest';
import { deviceSuite } from '../../test/support/device-suite.ts';
import { bytes, SECTOR } from '../units.ts';
import { type Outcome, PowerSupply, SimulatedDisk } from './simulated.ts';

const MIB = 2 ** 20;

deviceSuite('a simulated disk', async () => ({
  device: new SimulatedDisk(4 * MIB, { power: new PowerSupply({ slow: 0.5 }) }),
  cleanup: () => {},
}));

const filled = (byte: number, sectors = 1) => new Uint8Array(sectors * SECTOR).fill(byte);
const bytesAt = (platter: Uint8Array, sectors: number) =>
  Array.from({ length: sectors }, (_, s) => platter[s * SECTOR]);

test('what was flushed survives; what was not is lost, kept or overtaken, sector by sector', async () => {
  const outcomes = new Set<string>();
  for (let seed = 0; seed < 200; seed++) {
    const disk = new SimulatedDisk(4 * SECTOR, { contents: filled(1, 4) });
    disk.write(bytes(0), filled(2, 2), 0, 2 * SECTOR);
    disk.flush();
    disk.write(bytes(0), filled(3, 3), 0, 3 * SECTOR);
    disk.write(bytes(0), filled(4), 0, SECTOR);
    outcomes.add(bytesAt(disk.crash(seed), 4).join(''));
  }
  const possible = [2, 3, 4].flatMap((a) => [2, 3].flatMap((b) => [1, 3].map((c) => `${a}${b}${c}1`)));
  expect([...outcomes].sort()).toEqual(possible.sort());
});

test('a sector is never torn', () => {
  const disk = new SimulatedDisk(2 * SECTOR, { contents: filled(1, 2) });
  disk.write(bytes(0), filled(2, 2), 0, 2 * SECTOR);
  for (let seed = 0; seed < 50; seed++) {
    const platter = disk.crash(seed);
    for (const s of [0, 1]) expect(new Set(platter.subarray(s * SECTOR, (s + 1) * SECTOR)).size).toBe(1);
  }
});

test('a flush does not cover a write that completes while it runs', async () => {
  const power = new PowerSupply();
  const disk = new SimulatedDisk(SECTOR, { power, contents: filled(1) });
  power.slow = 1;
  const flush = disk.flush();
  power.slow = 0;
  disk.write(bytes(0), filled(2), 0, SECTOR);
  await flush;
  const seen = new Set(Array.from({ length: 50 }, (_, seed) => disk.crash(seed)[0]));
  expect([...seen].sort()).toEqual([1, 2]);
});

test('the operation during which the power goes is cut off in its middle, and none comes after', async () => {
  const power = new PowerSupply({ cutAt: 1, record: true });
  const disk = new SimulatedDisk(2 * SECTOR, { power, contents: filled(1, 2) });
  disk.write(bytes(0), filled(2), 0, SECTOR);
  expect(() => disk.write(bytes(0), filled(3, 2), 0, 2 * SECTOR)).toThrow('the power failed');
  expect(power.on).toBe(false);
  expect(() => disk.flush()).toThrow('the power is off');
  const outcomes = new Set(Array.from({ length: 100 }, (_, seed) => bytesAt(disk.crash(seed), 2).join('')));
  expect([...outcomes].sort()).toEqual(['11', '13', '21', '23', '31', '33']);
  expect(power.history.map(({ number, kind }) => `${number} ${kind}`)).toEqual(['0 write', '1 write']);
});

test('one seed is one replay', async () => {
  const run = async () => {
    const power = new PowerSupply({ seed: 7, slow: 0.5, record: true });
    const disk = new SimulatedDisk(16 * SECTOR, { power });
    await Promise.all(Array.from({ length: 16 }, (_, s) => disk.write(bytes(s * SECTOR), filled(s), 0, SECTOR)));
    return power.history.map(({ at }) => at / SECTOR);
  };
  const first = await run();
  expect(await run()).toEqual(first);
  expect(first).not.toEqual([...first].sort((a, b) => a - b));
});

test('an injected error changes nothing', () => {
  const disk = new SimulatedDisk(SECTOR, {
    contents: filled(1),
    fault: (kind) => (kind === 'write' ? 'ENOSPC' : undefined),
  });
  expect(() => disk.write(bytes(0), filled(2), 0, SECTOR)).toThrow(expect.objectContaining({ errno: 'ENOSPC' }));
  expect(disk.snapshot()[0]).toBe(1);
});

test('a chunk of several sectors is torn in every way there is', () => {
  const disk = new SimulatedDisk(4 * SECTOR, { contents: filled(1, 4) });
  disk.write(bytes(0), filled(2, 4), 0, 4 * SECTOR);
  const outcomes = new Set(Array.from({ length: 400 }, (_, seed) => bytesAt(disk.crash(seed), 4).join('')));
  expect(outcomes.size).toBe(2 ** 4);
});

test('what a crash leaves is a disk of its own, whatever is written to either', () => {
  const disk = new SimulatedDisk(2 * SECTOR, { contents: filled(1, 2) });
  disk.write(bytes(0), filled(2), 0, SECTOR);
  disk.flush();
  const platter = disk.afterCrash(1);
  const again = new SimulatedDisk(2 * SECTOR, { contents: platter });
  again.write(bytes(SECTOR), filled(3), 0, SECTOR);
  disk.write(bytes(0), filled(4, 2), 0, 2 * SECTOR);
  expect(bytesAt(again.snapshot(), 2)).toEqual([2, 3]);
  expect(bytesAt(disk.snapshot(), 2)).toEqual([4, 4]);
  expect(bytesAt(platter.bytes(), 2)).toEqual([2, 1]);
  expect([1, 3]).toContain(again.crash(2)[SECTOR]);
});

test('who observes an operation sees what a power cut in its middle leaves', () => {
  const seen: string[] = [];
  const power = new PowerSupply({
    observe: ({ kind }) => {
      const outcomes = new Set(Array.from({ length: 50 }, (_, seed) => disk.crash(seed)[0]));
      seen.push(`${kind} ${[...outcomes].sort().join('')}`);
    },
  });
  const disk: SimulatedDisk = new SimulatedDisk(SECTOR, { power, contents: filled(1) });
  disk.write(bytes(0), filled(2), 0, SECTOR);
  disk.flush();
  disk.read(bytes(0), new Uint8Array(SECTOR), 0, SECTOR);
  expect(seen).toEqual(['write 12', 'flush 12', 'read 2']);
});

test('a crash tells which write of each sector it kept', () => {
  const disk = new SimulatedDisk(2 * SECTOR, { contents: filled(1, 2) });
  disk.write(bytes(0), filled(2), 0, SECTOR);
  disk.flush();
  disk.write(bytes(0), filled(3), 0, SECTOR);
  const outcomes: Outcome[] = [];
  const platter = disk.afterCrash(5, outcomes);
  expect(outcomes).toEqual([{ sector: 0, versions: [0, 2], kept: platter.bytes()[0] === 3 ? 2 : 0 }]);
});

test('a write that fails and tears has changed any of its sectors', () => {
  const outcomes = new Set<string>();
  for (let seed = 0; seed < 60; seed++) {
    const power = new PowerSupply({ seed });
    const disk = new SimulatedDisk(2 * SECTOR, { power, contents: filled(1, 2), fault: () => 'EIO', tears: true });
    expect(() => disk.write(bytes(0), filled(2, 2), 0, 2 * SECTOR)).toThrow('failed');
    outcomes.add(bytesAt(disk.snapshot(), 2).join(''));
  }
  expect([...outcomes].sort()).toEqual(['11', '12', '21', '22']);
});
