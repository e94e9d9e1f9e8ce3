/**
 * What the daemon must know after a crash, in one JSON file. Each save writes a new file, makes it durable and puts it
 * in the place of the old one, so that the file is always one that was saved whole:
 *
 *     write state.json.new   fsync   rename to state.json   fsync of the directory
 */
import { type FileHandle, open, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { DmError, fromSystem } from '../../errors.ts';

const VERSION = 1;

type Content<T> = () => T | Promise<T>;

export class StateFile<T> {
  readonly path: string;
  readonly #directory: string;
  #written = '';
  #running: Promise<void> | undefined;
  #next: { content: Content<T>; done: Promise<void> } | undefined;

  constructor(directory: string) {
    this.#directory = directory;
    this.path = join(directory, 'state.json');
  }

  /** Undefined when nothing was ever saved. Throws STATE_CORRUPT, with what to do, and leaves the file as it is. */
  async load(): Promise<T | undefined> {
    let text: string;
    try {
      text = await readFile(this.path, 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw fromSystem(error, `Cannot read ${this.path}`);
    }
    let parsed: { version?: unknown; state?: unknown } | null = null;
    let fault = 'it is no JSON object';
    try {
      parsed = JSON.parse(text);
    } catch (error) {
      fault = (error as Error).message;
    }
    if (typeof parsed !== 'object' || parsed === null || !('state' in parsed)) throw this.corrupt(fault);
    if (parsed.version !== VERSION)
      throw new DmError(
        'STATE_VERSION',
        'EINVAL',
        `Cannot read ${this.path}: it has version ${parsed.version}, and this dmkit knows ${VERSION}`,
        { hint: 'use the dmkit that wrote it' },
      );
    this.#written = text;
    return parsed.state as T;
  }

  corrupt(fault: string): DmError {
    return new DmError('STATE_CORRUPT', 'EINVAL', `Cannot read ${this.path}: ${fault}`, {
      hint: `the daemon does not start without it, so that no device is lost: repair it, or put it aside and begin with no devices: mv ${this.path} ${this.path}.bad`,
    });
  }

  /**
   * Settles when a content at least as new as this call is durable. Calls that come while a save runs share the next
   * one; `content` is asked when that one begins. Nothing is written when nothing changed.
   */
  save(content: Content<T>): Promise<void> {
    if (this.#next) {
      this.#next.content = content;
      return this.#next.done;
    }
    if (!this.#running) return this.#begin(content);
    const next = { content, done: Promise.resolve() };
    next.done = this.#running
      .catch(() => {})
      .then(() => {
        this.#next = undefined;
        return this.#begin(next.content);
      });
    this.#next = next;
    return next.done;
  }

  /** As `save`, and shows that it can be saved: something is written even when nothing changed. */
  probe(content: Content<T>): Promise<void> {
    this.#written = '';
    return this.save(content);
  }

  /** Settles when no save is under way or to come. */
  async idle(): Promise<void> {
    while (this.#running || this.#next) await (this.#next?.done ?? this.#running)?.catch(() => {});
  }

  #begin(content: Content<T>): Promise<void> {
    const running = this.#write(content);
    const ended = () => {
      if (this.#running === running) this.#running = undefined;
    };
    this.#running = running;
    running.then(ended, ended);
    return running;
  }

  async #write(content: Content<T>): Promise<void> {
    const text = `${JSON.stringify({ version: VERSION, state: await content() }, undefined, 1)}\n`;
    if (text === this.#written) return;
    const temporary = `${this.path}.new`;
    try {
      await durably(await open(temporary, 'w', 0o600), (file) => file.writeFile(text));
      await rename(temporary, this.path);
      await durably(await open(this.#directory, 'r'), async () => {});
    } catch (error) {
      throw fromSystem(
        error,
        `Cannot save the tables in ${this.path}`,
        'the change is in force but would not survive a restart',
      );
    }
    this.#written = text;
  }
}

async function durably(file: FileHandle, work: (file: FileHandle) => Promise<unknown>): Promise<void> {
  try {
    await work(file);
    await file.sync();
  } finally {
    await file.close();
  }
}
