/** Files of /proc and sysfs, which come and go while one looks: what is not there, or not for us, is nothing. */
import { readdirSync, readFileSync } from 'node:fs';

/** Without white space at its ends. */
export function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

export function entriesOf(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}
