import type { Duplex } from 'node:stream';

/** More than this unread stops the stream: a peer that talks ahead costs no memory. */
const AHEAD_MAX = 256 * 1024;

/**
 * Takes bytes from a stream in the amounts a protocol wants, one reader at a time. What was not taken is handed over by
 * `release`, which detaches the reader.
 */
export class ByteReader {
  readonly #stream: Duplex;
  #chunks: Buffer[] = [];
  #length = 0;
  #ended = false;
  #error: Error | undefined;
  #wake: (() => void) | undefined;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on('data', this.#onData);
    stream.on('end', this.#onEnd);
    stream.on('close', this.#onEnd);
    stream.on('error', this.#onError);
  }

  /** The next `length` bytes, in memory of their own; undefined when the stream ends first. Rejects when it fails. */
  async take(length: number): Promise<Buffer | undefined> {
    while (this.#length < length) {
      if (this.#error) throw this.#error;
      if (this.#ended) return undefined;
      if (this.#stream.isPaused()) this.#stream.resume();
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const all = this.#join();
    this.#keep(all.subarray(length));
    return Buffer.from(all.subarray(0, length));
  }

  /** Lets go of `length` bytes without holding them. False when the stream ends first. */
  async skip(length: number): Promise<boolean> {
    for (let left = length; left > 0; ) {
      const piece = await this.take(Math.min(left, Math.max(1, this.#length)));
      if (!piece) return false;
      left -= piece.length;
    }
    return true;
  }

  /** Bytes received and not taken. */
  get buffered(): number {
    return this.#length;
  }

  /** Ends reading; the stream is paused. Returns the bytes not taken. */
  release(): Buffer {
    this.#stream.pause();
    this.#stream.off('data', this.#onData);
    this.#stream.off('end', this.#onEnd);
    this.#stream.off('close', this.#onEnd);
    this.#stream.off('error', this.#onError);
    return this.#join();
  }

  #join(): Buffer {
    return this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
  }

  #keep(rest: Buffer): void {
    this.#chunks = rest.length > 0 ? [rest] : [];
    this.#length = rest.length;
  }

  readonly #onData = (chunk: Buffer) => {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
    // `take` resumes the stream when it needs more than is here.
    if (this.#length > AHEAD_MAX) this.#stream.pause();
    this.#rouse();
  };

  readonly #onEnd = () => {
    this.#ended = true;
    this.#rouse();
  };

  readonly #onError = (error: Error) => {
    this.#error = error;
    this.#rouse();
  };

  #rouse(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}
