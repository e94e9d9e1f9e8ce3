import { expect, test } from 'vitest';
import { startThread } from './start-engine.ts';

test('a thread whose package is another one by now does not begin', async () => {
  const thread = startThread({ major: 254, nbdSocket: '/run', version: 'of old' });
  await expect(thread.failed).rejects.toThrow();
  await thread.end();
});
