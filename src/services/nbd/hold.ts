import type { Share } from './memory.ts';

/** Memory with its users counted: a share holds it until the last of them has released it. */
export class Hold {
  readonly #bytes: number;
  #share: Share;
  #users = 1;

  constructor(share: Share, bytes: number) {
    this.#bytes = bytes;
    this.#share = share;
    share.take(bytes);
  }

  get users(): number {
    return this.#users;
  }

  retain(): void {
    this.#users++;
  }

  release(): void {
    if (--this.#users === 0) this.#share.give(this.#bytes);
  }

  /** The same memory has a user again, for another share perhaps. */
  protected holdAgain(share: Share): void {
    this.#share = share;
    this.#users = 1;
    share.take(this.#bytes);
  }
}
