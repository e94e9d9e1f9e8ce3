import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { DmError, TableError } from '../../errors.ts';
import { CALLS, type CallName } from './calls.ts';
import { controlClient } from './control-client.ts';
import { ControlServer, type Handlers } from './control-server.ts';

let directory: string;
let path: string;
let server: ControlServer;
let calls: [CallName, unknown[]][];
let logged: string[];
let answer: (call: CallName, args: unknown[], signal: AbortSignal) => Promise<unknown>;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-control-'));
  path = join(directory, 'control.sock');
  calls = [];
  logged = [];
  answer = async () => undefined;
  const handlers = Object.fromEntries(
    (Object.keys(CALLS) as CallName[]).map((call) => [
      call,
      (args: unknown[], signal: AbortSignal) => {
        calls.push([call, args]);
        return answer(call, args, signal);
      },
    ]),
  ) as Handlers;
  server = new ControlServer(handlers, { log: (line) => logged.push(line), bodyMax: 10_000 });
  await server.listen(path);
});

afterEach(async () => {
  await server.close();
  rmSync(directory, { recursive: true });
});

function once() {
  let fire = () => {};
  const fired = new Promise<void>((resolve) => (fire = resolve));
  return { fire, fired };
}

const raw = (method: string, url: string, body = '', headers: Record<string, string> = {}) =>
  new Promise<{ status: number; body: string }>((resolve, reject) => {
    const sent = httpRequest({ socketPath: path, method, path: url, agent: false, headers }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (part) => (text += part));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: text }));
    });
    sent.on('error', reject);
    sent.end(body);
  });

/** Writes bytes to the socket and resolves with all that comes back until it is closed. */
const bytes = (text: string, thenEnd = false) =>
  new Promise<string>((resolve) => {
    const socket = connect({ path, allowHalfOpen: true });
    let got = '';
    socket.on('data', (part) => (got += part));
    socket.on('error', () => {});
    socket.on('close', () => resolve(got));
    socket.on('end', () => socket.end());
    if (thenEnd) socket.end(text);
    else socket.write(text);
  });

describe('a call', () => {
  test('reaches its handler with its arguments in order and brings back the result', async () => {
    answer = async () => ({ name: 'dev', size: 4096 });
    const client = controlClient(path);
    expect(await client.info({ name: 'dev' }, { inactive: true })).toEqual({ name: 'dev', size: 4096 });
    await client.message({ uuid: 'U' }, 7, 'hello');
    await client.list();
    expect(calls).toEqual([
      ['info', [{ name: 'dev' }, { inactive: true }]],
      ['message', [{ uuid: 'U' }, 7, 'hello']],
      ['list', [undefined]],
    ]);
  });

  test('resolves with undefined where the handler gives nothing', async () => {
    expect(await controlClient(path).removeAll()).toBeUndefined();
  });

  test('rejects with the error of the handler: class, code, errno, message, hint and step', async () => {
    answer = async () => {
      const error = new TableError('BAD_TABLE', 'EINVAL', 'Cannot load line 1', { hint: 'look at it' });
      error.step = { call: 'load', major: 254, minor: 7 };
      throw error;
    };
    const error = await controlClient(path)
      .load({ name: 'a' }, [])
      .catch((error) => error);
    expect(error).toBeInstanceOf(TableError);
    expect(error).toMatchObject({
      code: 'BAD_TABLE',
      errno: 'EINVAL',
      message: 'Cannot load line 1',
      hint: 'look at it',
      step: { call: 'load', major: 254, minor: 7 },
    });
  });

  test('that fails by a fault of ours tells the client the message and the log the stack', async () => {
    answer = async () => {
      throw new Error('boom');
    };
    await expect(controlClient(path).list()).rejects.toMatchObject({ code: 'INTERNAL', message: /boom/ });
    expect(logged.join()).toContain('control-socket.test.ts');
  });

  test('carries a length beyond 2^53 as the nearest double', async () => {
    await controlClient(path).load({ name: 'a' }, [{ start: 0, length: 2 ** 54, type: 'zero', args: '' }]);
    expect((calls[0][1][1] as { length: number }[])[0].length).toBe(2 ** 54);
  });
});

describe('waiting', () => {
  test('ends in the server when the client gives up, and in the client with EINTR', async () => {
    const began = once();
    const ended = once();
    answer = (_call, _args, signal) => {
      began.fire();
      return new Promise((resolve) =>
        signal.addEventListener('abort', () => {
          resolve(undefined);
          ended.fire();
        }),
      );
    };
    const abort = new AbortController();
    const wait = controlClient(path).wait({ name: 'a' }, 0, abort.signal);
    const refused = expect(wait).rejects.toMatchObject({ errno: 'EINTR' });
    await began.fired;
    abort.abort();
    await refused;
    await ended.fired;
  });

  test('ends when the server closes, which waits for calls that are running', async () => {
    const began = once();
    answer = (_call, _args, signal) => {
      began.fire();
      return new Promise((_, failed) =>
        signal.addEventListener('abort', () => failed(new DmError('STOPPING', 'ESHUTDOWN', 'The daemon stops'))),
      );
    };
    const wait = expect(controlClient(path).wait({ name: 'a' }, 0)).rejects.toMatchObject({ code: 'STOPPING' });
    await began.fired;
    await server.close();
    await wait;
    expect(existsSync(path)).toBe(false);
  });
});

describe('a request that is wrong', () => {
  test.each<[string, string, string, string, number]>([
    ['is not JSON', 'POST', '/v1/list', '{', 400],
    ['is no object', 'POST', '/v1/list', '[1]', 400],
    ['has a parameter that the call has not', 'POST', '/v1/list', '{"x":1}', 400],
    ['lacks a parameter', 'POST', '/v1/info', '{}', 400],
    ['has one of the wrong kind', 'POST', '/v1/create', '{"name":7}', 400],
    ['has an unknown option', 'POST', '/v1/list', '{"options":{"constructor":1}}', 400],
    ['names a device in no known way', 'POST', '/v1/info', '{"device":{"name":"a","uuid":"b"}}', 400],
    ['has a table that is none', 'POST', '/v1/load', '{"device":{"name":"a"},"table":[{"start":0}]}', 400],
    ['has a fraction', 'POST', '/v1/wait', '{"device":{"name":"a"},"event":1.5}', 400],
    ['asks for a call that there is not', 'POST', '/v1/toString', '{}', 404],
    ['asks for another path', 'GET', '/etc/passwd', '', 404],
    ['uses another method', 'PUT', '/v1/list', '{}', 405],
    ['is too large', 'POST', '/v1/list', `"${'x'.repeat(20_000)}"`, 413],
  ])('because it %s is answered so and nothing is called', async (_why, method, url, body, status) => {
    const got = await raw(method, url, body);
    expect(got.status).toBe(status);
    expect(JSON.parse(got.body).error).toMatchObject({ code: 'BAD_REQUEST', errno: 'EINVAL' });
    expect(calls).toEqual([]);
  });

  test('because it is no HTTP costs its own connection only', async () => {
    expect(await bytes('\0\0garbage\r\n\r\n')).toMatch(/^HTTP\/1.1 400/);
    await controlClient(path).list();
  });

  test('because it breaks off costs its own connection only', async () => {
    await new Promise<void>((done) => {
      const socket = connect(path, () => {
        socket.write('POST /v1/list HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"opt', () => socket.destroy());
      });
      socket.on('close', () => done());
    });
    await controlClient(path).list();
    expect(calls).toEqual([['list', [undefined]]]);
    expect(logged).toEqual([]);
  });
});

const request = (call: string, body: string) =>
  `POST /v1/${call} HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`;

test('a client that connected before the server closed, and asks after it, is told so', async () => {
  const socket = connect(path);
  let got = '';
  socket.on('data', (part) => (got += part));
  const closed = new Promise((done) => socket.on('close', done));
  await new Promise((connected) => socket.on('connect', connected));
  const closing = server.close();
  while (existsSync(path)) await new Promise((turn) => setImmediate(turn));
  socket.write(request('targets', '{}'));
  await closed;
  await closing;
  expect(got).toMatch(/"code":"DAEMON_STOPS"/);
  expect(calls).toEqual([]);
});

test('a client that sends half a request holds up no end of the server', async () => {
  const arrived = new Promise<void>((done) => (answer = async () => done()));
  const sockets = [request('targets', '{}').slice(0, -1), 'POST /v1/targets HTTP/1.1\r\n'].map((half) => {
    const socket = connect(path, () => socket.write(half));
    return new Promise((done) => socket.on('close', done).on('error', () => {}));
  });
  // What was sent before has been read when this is answered.
  await controlClient(path).list();
  await arrived;
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  try {
    let closed = false;
    void server.close().then(() => (closed = true));
    // One wait after the other.
    for (; !closed; await turn()) vi.runAllTimers();
  } finally {
    vi.useRealTimers();
  }
  await Promise.all(sockets);
  expect(calls).toEqual([['list', [undefined]]]);
  expect(logged).toEqual([]);
});

describe('a client that closes its sending side', () => {
  test('is answered all the same', async () => {
    // As late as can be: the end of the request has been seen.
    answer = (_call, _args, signal) =>
      new Promise((resolve) => signal.addEventListener('abort', () => resolve('done')));
    expect(await bytes(request('targets', '{}'), true)).toMatch(/^HTTP\/1.1 200 OK\r\n.*{"result":"done"}\n$/s);
  });

  test('in the middle of its request is told so', async () => {
    expect(await bytes(request('targets', '{}').slice(0, -1), true)).toMatch(/^HTTP\/1.1 400 Bad Request\r\n/);
    expect(calls).toEqual([]);
    expect(logged).toEqual([]);
  });
});

describe('the socket', () => {
  test('is open to its owner only', () => {
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  test('answers GET /v1/status for people with curl', async () => {
    answer = async (call) => ({ call });
    expect(await raw('GET', '/v1/status')).toEqual({ status: 200, body: '{"result":{"call":"daemon"}}\n' });
  });

  test('replaces a stale one', async () => {
    const stale = join(directory, 'stale.sock');
    writeFileSync(stale, '');
    const other = new ControlServer({} as Handlers);
    await other.listen(stale);
    expect(statSync(stale).isSocket()).toBe(true);
    await other.close();
  });

  test('with a path too long for the kernel is refused with the limit', async () => {
    const other = new ControlServer({} as Handlers);
    await expect(other.listen(join(directory, 'x'.repeat(100)))).rejects.toMatchObject({ code: 'SOCKET_PATH' });
  });
});

describe('a client', () => {
  test('says that no daemon listens, and how to start it', async () => {
    await expect(controlClient(join(directory, 'none')).list()).rejects.toMatchObject({
      code: 'DAEMON_DOWN',
      errno: 'ECONNREFUSED',
      hint: /dmkit up/,
    });
  });

  test('says that the daemon went away before it answered', async () => {
    const rude = createServer((socket) => socket.on('data', () => socket.destroy()));
    await new Promise<void>((done) => rude.listen(join(directory, 'rude'), done));
    await expect(controlClient(join(directory, 'rude')).list()).rejects.toMatchObject({ code: 'DAEMON_LOST' });
    rude.close();
  });

  test('says that something else listens there', async () => {
    const odd = createServer((socket) =>
      socket.on('data', () => socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi')),
    );
    await new Promise<void>((done) => odd.listen(join(directory, 'odd'), done));
    await expect(controlClient(join(directory, 'odd')).list()).rejects.toMatchObject({ code: 'PROTOCOL' });
    odd.close();
  });
});
