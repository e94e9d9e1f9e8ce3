/**
 * Resolves when all of `waits` have ended, and rejects then with the first error among them: whoever lent a buffer to
 * several operations may use it again.
 */
export async function every(waits: readonly Promise<unknown>[]): Promise<void> {
  for (const result of await Promise.allSettled(waits)) if (result.status === 'rejected') throw result.reason;
}
