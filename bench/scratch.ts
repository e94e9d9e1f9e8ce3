import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';

export interface Scratch {
  path: string;
  remove(): void;
}

/** A new folder. Who interrupts the benchmark need not remove it. */
export function scratchIn(parent: string): Scratch {
  const path = mkdtempSync(join(parent, 'dmkit-bench-'));
  // A server that was killed just now may still be writing.
  const remove = () => rmSync(path, { recursive: true, force: true, maxRetries: 10 });
  process.once('exit', remove);
  return {
    path,
    remove() {
      process.off('exit', remove);
      remove();
    },
  };
}
