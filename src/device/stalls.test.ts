import { beforeEach, expect, test, vi } from 'vitest';
import { FakeClock } from '../testing/fake-clock.ts';
import { Stalls } from './stalls.ts';

let clock: FakeClock;
let naps: number;
let asked: number;
let stalls: Stalls;

beforeEach(() => {
  clock = new FakeClock();
  naps = 7;
  asked = 0;
  stalls = new Stalls(clock, () => {
    asked++;
    return naps;
  });
});

/** A write that takes so long; `slept`: waiting for the disk. */
function write(ms: number, { slept = true } = {}): void {
  stalls.before();
  clock.pass(ms);
  if (slept) naps++;
  stalls.after();
}

test('are not looked for while writes are short', () => {
  for (let i = 0; i < 1000; i++) write(1);
  expect([stalls.expected, asked]).toEqual([false, 0]);
});

test('are expected when two writes close to one another had to wait', () => {
  write(20);
  expect(stalls.expected).toBe(false);
  write(20);
  expect(stalls.expected).toBe(true);
  clock.pass(1000);
  expect(stalls.expected).toBe(false);
});

test('are not what makes a write long that others kept from the processor', () => {
  for (let i = 0; i < 100; i++) write(20, { slept: false });
  expect(stalls.expected).toBe(false);
});

test('are expected for longer each time they are found again, and forgotten when they are not', () => {
  const lasts = () => {
    let ms = 0;
    for (; stalls.expected; ms += 100) clock.pass(100);
    return ms;
  };
  write(20);
  const found = Array.from({ length: 7 }, () => {
    write(20);
    return lasts();
  });
  expect(found).toEqual([1000, 2000, 4000, 8000, 16_000, 32_000, 32_000]);
  clock.pass(1000);
  write(20);
  write(20);
  expect(lasts()).toBe(1000);
});

test('are never found without koffi', () => {
  vi.stubEnv('DMKIT_NO_FFI', '1');
  const blind = new Stalls(clock);
  vi.unstubAllEnvs();
  stalls = blind;
  for (let i = 0; i < 10; i++) write(1000);
  expect(blind.expected).toBe(false);
});
