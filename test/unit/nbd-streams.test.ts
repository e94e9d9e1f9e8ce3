/** The server again without system calls: connections are Node's streams then, as they are over TLS. */
import { beforeAll, vi } from 'vitest';
import './nbd-fuzz.test.ts';
import './nbd-memory.test.ts';
import './nbd-handshake.test.ts';
import './nbd-server.test.ts';
import './nbd-transmission.test.ts';

beforeAll(() => void vi.stubEnv('DMKIT_NO_FFI', '1'));
