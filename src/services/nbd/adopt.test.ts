import { readlinkSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { attach, detach } from './adopt.ts';

/** A paused socket as a server accepts it, and the other side. */
async function pair(): Promise<[Socket, Socket]> {
  const directory = await mkdtemp(join(tmpdir(), 'dmkit-adopt-'));
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  await new Promise<void>((resolve) => server.listen(join(directory, 's'), resolve));
  const client = connect({ path: join(directory, 's'), allowHalfOpen: true });
  onTestFinished(async () => {
    client.destroy();
    (await accepted).destroy();
    server.close();
    await rm(directory, { recursive: true });
  });
  return [await accepted, client];
}

const text = (socket: Socket) =>
  new Promise<string>((resolve) => {
    let all = '';
    socket.on('data', (data) => (all += data)).once('end', () => resolve(all));
  });

/** Receives into places of `size` bytes each, which begin with 'x'. */
function receive(fd: number, size: number) {
  const got: string[] = [];
  let place: Buffer;
  const socket = attach(fd, {
    place: () => (place = Buffer.alloc(size, 'x')),
    received: (count) => got.push(place.toString('latin1', 0, count)),
  });
  onTestFinished(() => void socket.destroy());
  return { socket, got };
}

test('a connection outlives the socket that accepted it, with what that had received', async () => {
  const [socket, client] = await pair();
  client.write('early');
  socket.read(0);
  while (socket.readableLength === 0) await new Promise((resolve) => setImmediate(resolve));
  const { fd, rest } = detach(socket)!;
  expect(rest.toString()).toBe('early');
  await new Promise((resolve) => socket.once('close', resolve));
  const { socket: mine, got } = receive(fd, 4);
  const ended = new Promise((resolve) => mine.once('end', resolve));
  const answer = text(client);
  client.end('and late');
  await ended;
  expect(got.every((piece) => piece.length <= 4)).toBe(true);
  expect(got.join('')).toBe('and late');
  // Its own side is still open.
  mine.end('answered');
  expect(await answer).toBe('answered');
});

test('a socket that is paused receives nothing, and goes on in the place it asked for', async () => {
  const [socket, client] = await pair();
  const { socket: mine, got } = receive(detach(socket)!.fd, 100);
  mine.pause();
  client.write('something');
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
  expect(got).toEqual([]);
  mine.resume();
  while (got.length === 0) await new Promise((resolve) => setImmediate(resolve));
  expect(got).toEqual(['something']);
});

test('the descriptor is closed with the socket', async () => {
  const [socket, client] = await pair();
  const { fd } = detach(socket)!;
  const { socket: mine } = receive(fd, 100);
  const link = readlinkSync(`/proc/self/fd/${fd}`);
  const gone = new Promise((resolve) => client.once('end', resolve).resume());
  mine.destroy();
  await gone;
  expect(() => readlinkSync(`/proc/self/fd/${fd}`) === link || expect.fail()).toThrow();
});

test('without system calls, or once it is destroyed, a socket stays as it is', async () => {
  const [socket, client] = await pair();
  vi.stubEnv('DMKIT_NO_FFI', '1');
  expect(detach(socket)).toBeUndefined();
  vi.unstubAllEnvs();
  const answer = text(client);
  socket.end('still here');
  expect(await answer).toBe('still here');
  socket.destroy();
  expect(detach(socket)).toBeUndefined();
});

test('what is no socket is refused, and closed', () => {
  expect(() => attach(1 << 20, { place: () => new Uint8Array(1), received() {} })).toThrow();
});
