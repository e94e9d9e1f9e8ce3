import { setImmediate as turn } from 'node:timers/promises';
import { beforeEach, expect, test } from 'vitest';
import { FakeClock } from '../../testing/fake-clock.ts';
import { Gate } from './gate.ts';

let clock: FakeClock;
let gate: Gate;
let order: string[];

beforeEach(() => {
  clock = new FakeClock();
  gate = new Gate(clock);
  order = [];
});

const late = (why: string) => new Error(why);

/** Work that ends when it is told to. */
function held(name: string) {
  let end = () => {};
  const ended = new Promise<void>((resolve) => (end = resolve));
  const work = async () => {
    order.push(name);
    await ended;
    order.push(`end of ${name}`);
  };
  return { work, end };
}

test('who is alone waits for those inside, and others for him', async () => {
  const [inside, alone] = [held('inside'), held('alone')];
  const first = gate.through(inside.work);
  const second = gate.alone(alone.work, late);
  const third = gate.through(async () => order.push('third'));
  await turn();
  expect(order).toEqual(['inside']);
  inside.end();
  await turn();
  expect(order).toEqual(['inside', 'end of inside', 'alone']);
  alone.end();
  await Promise.all([first, second, third]);
  expect(order.slice(3)).toEqual(['end of alone', 'third']);
  expect(clock.timers).toBe(0);
});

test('nobody is inside while somebody is alone, whoever has waited for the opening', async () => {
  const [alone, again] = [held('alone'), held('again')];
  const first = gate.alone(alone.work, late);
  const others = [0, 1].map(() => gate.through(async () => order.push('other')));
  alone.end();
  await first;
  const second = gate.alone(again.work, late);
  await turn();
  again.end();
  await Promise.all([...others, second]);
  expect(order).toHaveLength(6);
  expect(order.indexOf('end of again')).toBe(order.indexOf('again') + 1);
});

test('those inside hold it up for two seconds', async () => {
  const inside = held('inside');
  const first = gate.through(inside.work);
  const refused = expect(gate.alone(async () => {}, late)).rejects.toThrow('other calls take too long');
  const other = gate.through(async () => order.push('other'));
  await turn();
  clock.pass(1999);
  await turn();
  expect(order).toEqual(['inside']);
  clock.pass(1);
  await refused;
  await other;
  inside.end();
  await first;
});

test('who may take any time holds up nobody', async () => {
  const long = held('long');
  const waiting = gate.aside(long.work);
  await gate.alone(async () => {}, late);
  long.end();
  await waiting;
});

test('work that takes too long is told, and two seconds later others go on', async () => {
  const alone = held('alone');
  let told: AbortSignal | undefined;
  const refused = expect(
    gate.alone((soon) => {
      told = soon;
      return alone.work();
    }, late),
  ).rejects.toThrow('a disk does not answer');
  const other = gate.through(async () => order.push('other'));
  await turn();
  expect(told?.aborted).toBe(false);
  clock.pass(2000);
  await turn();
  expect(told?.aborted).toBe(true);
  expect(order).toEqual(['alone']);
  clock.pass(2000);
  await refused;
  await other;
  alone.end();
});

test('who may take any time, and gives up, waits no longer', async () => {
  const alone = held('alone');
  const abort = new AbortController();
  const first = gate.alone(alone.work, late);
  const waiting = gate.aside(async () => order.push('aside'), abort.signal);
  abort.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'INTERRUPTED', errno: 'EINTR' });
  const other = gate.aside(async () => order.push('other'));
  alone.end();
  await Promise.all([first, other]);
  expect(order).toEqual(['alone', 'end of alone', 'other']);
});
