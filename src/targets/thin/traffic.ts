/**
 * Requests to one thin device of a pool, through whichever mapped devices they come, and which of them have to wait for each other:
 * two that provision the same block, and a discard and everything else in its range.
 */

interface Discard {
  readonly begin: number;
  readonly end: number;
  readonly ended: Promise<void>;
}

export class Traffic {
  /** Under way. Those that wait for space are not: nobody has to wait for them. */
  readonly io = new Set<Promise<unknown>>();
  readonly #busy = new Map<number, Promise<void>>();
  readonly #discards = new Set<Discard>();

  /** What a read of virtual blocks from `first` up to `last` waits for. */
  reading(first: number, last: number): Promise<void> | undefined {
    if (this.#discards.size > 0)
      for (const { begin, end, ended } of this.#discards) if (first < end && last > begin) return ended;
    return undefined;
  }

  /** What a write to them waits for. */
  writing(first: number, last: number): Promise<void> | undefined {
    if (this.#busy.size > 0)
      for (let virtual = first; virtual < last; virtual++) {
        const busy = this.#busy.get(virtual);
        if (busy) return busy;
      }
    return this.reading(first, last);
  }

  /** Nobody else provisions these blocks until `work` has ended. */
  async alone(first: number, last: number, work: (request: Request) => Promise<void>): Promise<void> {
    const request = new Request(this.io);
    let end!: () => void;
    const ended = new Promise<void>((resolve) => (end = resolve));
    for (let virtual = first; virtual < last; virtual++) this.#busy.set(virtual, ended);
    try {
      await work(request);
    } finally {
      for (let virtual = first; virtual < last; virtual++) this.#busy.delete(virtual);
      request.end();
      end();
    }
  }

  /** Runs `work` when everything that is under way has ended, and keeps requests to these blocks waiting until it has. */
  async discard(begin: number, end: number, work: () => Promise<void>): Promise<void> {
    let go!: () => void;
    const discard = { begin, end, ended: new Promise<void>((resolve) => (go = resolve)) };
    this.#discards.add(discard);
    const request = new Request(this.io);
    try {
      await Promise.allSettled([...this.io].filter((other) => other !== request.mark));
      await work();
    } finally {
      this.#discards.delete(discard);
      request.end();
      go();
    }
  }
}

/** A request under way, but while it waits for space. */
export class Request {
  readonly #all: Set<Promise<unknown>>;
  mark!: Promise<void>;
  #end!: () => void;

  constructor(all: Set<Promise<unknown>>) {
    this.#all = all;
    this.begin();
  }

  begin(): void {
    this.mark = new Promise((end) => (this.#end = end));
    this.#all.add(this.mark);
  }

  end(): void {
    this.#all.delete(this.mark);
    this.#end();
  }
}
