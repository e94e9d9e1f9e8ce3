import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs';
import { join } from 'node:path';

/** Bytes of the log before it is begun anew; the one before is kept as `dmkit.log.1`. */
const LOG_MAX = 1024 * 1024;

/** `dmkit.log` in the state directory. Logging never fails: a full disk costs the line. */
export class LogFile {
  readonly path: string;
  readonly #max: number;
  #fd: number;
  #size: number;

  constructor(directory: string, max = LOG_MAX) {
    this.path = join(directory, 'dmkit.log');
    this.#max = max;
    this.#fd = openSync(this.path, 'a', 0o600);
    this.#size = fstatSync(this.#fd).size;
  }

  /** One line, with the time; further lines of `text` are set in. */
  write(text: string): void {
    const line = `${new Date().toISOString()} ${text.trimEnd().replaceAll('\n', '\n    ')}\n`;
    try {
      if (this.#size > 0 && this.#size + line.length > this.#max) this.#rotate();
      this.#size += writeSync(this.#fd, line);
    } catch {
      // Nowhere to tell it.
    }
  }

  #rotate(): void {
    renameSync(this.path, `${this.path}.1`);
    closeSync(this.#fd);
    this.#fd = openSync(this.path, 'a', 0o600);
    this.#size = 0;
  }

  close(): void {
    closeSync(this.#fd);
  }
}
