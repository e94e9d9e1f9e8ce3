import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { controlClient } from './control-client.ts';

let directory: string;
let socketPath: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-client-'));
  socketPath = join(directory, 'control.sock');
});

afterEach(() => rmSync(directory, { recursive: true }));

test('waits for a daemon that has no room for another connection yet', async () => {
  const server = createServer((_, response) => response.end('{"result":[]}'));
  await new Promise<void>((listening) => server.listen({ path: socketPath, backlog: 1 }, listening));
  const client = controlClient(socketPath);
  // All of them connect before the server gets to accept one.
  const answers = await Promise.all(Array.from({ length: 20 }, () => client.list()));
  expect(answers).toEqual(Array(20).fill([]));
  await new Promise((closed) => server.close(closed));
});
