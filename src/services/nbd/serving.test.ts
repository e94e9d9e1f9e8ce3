import { expect, test } from 'vitest';
import { MemoryDevice } from '../../device/memory.ts';
import { bytes } from '../../units.ts';
import type { Session } from './handshake.ts';
import { LIMITS } from './limits.ts';
import { Serving } from './serving.ts';

test('what is no connection leaves nothing behind', () => {
  const serving = new Serving(LIMITS);
  const device = new MemoryDevice(bytes(4096));
  const open = { device, readOnly: false, close: async () => {} };
  const session: Session = { name: '', open, structured: false, contexts: [], secure: false };
  expect(() => serving.transmission(1 << 20, session, () => {})).toThrow();
  expect(serving.heldBytes).toBe(0);
});
