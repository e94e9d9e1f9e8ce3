import { expect, test } from 'vitest';
import { Memory } from './memory.ts';
import { BufferSource } from './received.ts';
import { type ReplyBuffer, ReplyBuffers, SMALLEST_BUFFER } from './reply-buffers.ts';

function setup() {
  const memory = new Memory(2 ** 30, 1000);
  const share = memory.join({ wake() {}, progress: () => undefined, cutOff() {} }, 1);
  const buffers = new ReplyBuffers();
  const source = new BufferSource(buffers, share);
  const placeFor = (payload?: ReplyBuffer, length = 0) => {
    source.choose(payload, length);
    return source.place;
  };
  const put = (text: string) => {
    const place = placeFor();
    place.set(Buffer.from(text));
    expect(source.received(text.length)).toBe(true);
    expect(source.data.toString('latin1', source.at, source.end)).toBe(text);
    return place;
  };
  return { share, buffers, source, put, place: placeFor };
}

test('fills the same buffer again when nothing of it is needed', () => {
  const { source, share, put } = setup();
  const first = put('first');
  source.parsed();
  expect(put('second')).toBe(first);
  expect(share.held).toBe(SMALLEST_BUFFER);
});

test('leaves alone what is not parsed, and what writes in flight keep', () => {
  const { source, share, put, place } = setup();
  put('kept ');
  const { data } = source;
  expect(source.cost).toBe(SMALLEST_BUFFER);
  const held = source.hold();
  // The buffer that takes its place is counted before it is needed.
  expect(share.held).toBe(2 * SMALLEST_BUFFER);
  expect(source.cost).toBe(0);
  source.parsed();
  put('left');
  // The place for what comes once the rest is parsed.
  place(undefined, 0).set(Buffer.from('new'));
  expect(data.toString('latin1', 0, 12)).toBe('kept leftnew');
  source.parsed();
  held.release();
  put('again');
  expect(data.toString('latin1', 0, 5)).toBe('again');
});

test('goes on in another buffer when there is no room behind', () => {
  const { source, share, put } = setup();
  put('x'.repeat(SMALLEST_BUFFER - 100));
  const { data } = source;
  // Memory as it comes may hold anything there.
  data.fill(0, SMALLEST_BUFFER - 100);
  const held = [source.hold(), source.hold()];
  source.parsed();
  put('y'.repeat(SMALLEST_BUFFER));
  expect(source.data).not.toBe(data);
  expect(data.indexOf('y')).toBe(-1);
  expect(share.held).toBe(2 * SMALLEST_BUFFER);
  source.parsed();
  for (const one of held) one.release();
  expect(share.held).toBe(SMALLEST_BUFFER);
  source.close();
  expect(share.held).toBe(0);
});

test('receives the rest of a long payload in place, and a short one for copying', () => {
  const { source, share, buffers, place } = setup();
  const payload = buffers.take(100_000, share);
  payload.used = 10_000;
  const rest = place(payload, 100_000);
  expect(rest.length).toBe(90_000);
  rest.fill(7);
  expect(source.received(80_000)).toBe(false);
  expect(payload.used).toBe(90_000);
  expect(payload.data[10_000]).toBe(7);
  // The header of another one may follow it: little more is received with it, which would be copied.
  expect(place(payload, 100_000).length).toBe(4096);
  source.received(100);
  source.parsed();
  expect(place().length).toBe(SMALLEST_BUFFER);
});

test('lets nobody else have a payload that the socket may still write to', () => {
  const { share, buffers, place } = setup();
  const payload = buffers.take(100_000, share);
  place(payload, 100_000);
  payload.release();
  expect(buffers.take(100_000, share)).not.toBe(payload);
  place(undefined, 0);
  expect(buffers.take(100_000, share)).toBe(payload);
});
