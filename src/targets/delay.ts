import type { BlockDevice, Extent, Maybe } from '../device/block-device.ts';
import { type Clock, systemClock } from '../lib/clock.ts';
import { type Bytes, bytes, type Sector, toBytes } from '../units.ts';
import { deviceWord, openArgument, parseSector, parseU32, refuse, tableMode } from './arguments.ts';
import type { DeviceRange, StatusKind, TableLine, Target, TargetType } from './target.ts';

/**
 * `delay <device> <start> <ms>`, and again for writes, and again for flushes: requests reach their device later (Linux
 * `dm-delay.c`).
 */
export const delayType = (clock: Clock): TargetType => ({
  name: 'delay',
  version: [1, 3, 0],
  async create(line) {
    const { args } = line;
    if (![3, 6, 9].includes(args.length)) throw refuse('delay', 'Requires exactly 3, 6 or 9 arguments');
    const lanes: Lane[] = [];
    for (let word = 0; word < args.length; word += 3) lanes.push(await readLane(line, args.slice(word, word + 3)));
    return new Delay(lanes, line.length, clock);
  },
});

export const delay = delayType(systemClock);

interface Lane {
  readonly device: BlockDevice;
  readonly start: Sector;
  /** Milliseconds. */
  readonly delay: number;
}

async function readLane(line: TableLine, [argument, startWord, delayWord]: readonly string[]): Promise<Lane> {
  const start = parseSector(startWord);
  if (start === undefined) throw refuse('delay', 'Invalid device sector');
  const delay = parseU32(delayWord);
  if (delay === undefined) throw refuse('delay', 'Invalid delay');
  return { device: await openArgument(line, 'delay', argument, tableMode(line)), start, delay };
}

type Operation = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';

const NO_BUFFER = new Uint8Array(0);

/** A request whose time has not come. */
interface Held {
  /** Among all requests of the target. */
  readonly order: number;
  /** By the clock. */
  readonly due: number;
  readonly operation: Operation;
  readonly at: Bytes;
  readonly buffer: Uint8Array;
  readonly start: number;
  readonly length: number;
  readonly mayUnmap: boolean;
  resolve(wait: Maybe): void;
  reject(error: unknown): void;
}

/** Requests of one kind. All wait equally long, so the first that came is the first that is due. */
class Queue {
  readonly device: BlockDevice;
  readonly delay: number;
  readonly #shift: Bytes;
  #held: Held[] = [];
  #first = 0;

  constructor({ device, start, delay }: Lane) {
    this.device = device;
    this.delay = delay;
    this.#shift = toBytes(start);
  }

  get length(): number {
    return this.#held.length - this.#first;
  }

  get first(): Held | undefined {
    return this.#held[this.#first];
  }

  below(at: Bytes): Bytes {
    return bytes(at + this.#shift);
  }

  push(held: Held): void {
    this.#held.push(held);
  }

  /** Sends the first one to the device. */
  send(): void {
    const held = this.#held[this.#first++];
    // What has gone is let go of now and then, not at each turn.
    if (this.#first === this.#held.length) {
      this.#held = [];
      this.#first = 0;
    } else if (this.#first >= 1024 && this.#first * 2 >= this.#held.length) {
      this.#held = this.#held.slice(this.#first);
      this.#first = 0;
    }
    try {
      held.resolve(this.perform(held));
    } catch (error) {
      held.reject(error);
    }
  }

  perform({ operation, at, buffer, start, length, mayUnmap }: Held): Maybe {
    switch (operation) {
      case 'read':
        return this.device.read(this.below(at), buffer, start, length);
      case 'write':
        return this.device.write(this.below(at), buffer, start, length);
      case 'flush':
        return this.device.flush();
      case 'discard':
        return this.device.discard(this.below(at), length);
      case 'writeZeroes':
        return this.device.writeZeroes(this.below(at), length, mayUnmap);
    }
  }
}

class Delay implements Target {
  readonly ranges: readonly DeviceRange[];
  readonly #lanes: readonly Lane[];
  readonly #clock: Clock;
  readonly #reads: Queue;
  /** Also discards and zeroes. */
  readonly #writes: Queue;
  readonly #flushes: Queue;
  readonly #queues: readonly Queue[];
  #order = 0;
  /** Off from presuspend to resume. */
  #delaying = true;
  #cancel: (() => void) | undefined;
  /** By the clock: when the timer that runs calls. */
  #wakes = 0;

  constructor(lanes: readonly Lane[], length: Sector, clock: Clock) {
    const [reads, writes = reads, flushes = writes] = lanes;
    this.#lanes = lanes;
    this.#clock = clock;
    this.ranges = lanes.map(({ device, start }) => ({ device, start, length }));
    this.#reads = new Queue(reads);
    this.#writes = new Queue(writes);
    this.#flushes = new Queue(flushes);
    this.#queues = [this.#reads, this.#writes, this.#flushes];
  }

  get canDiscard(): boolean {
    return this.#queues.every(({ device }) => device.canDiscard);
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    const queue = this.#reads;
    if (this.#waits(queue)) return this.#hold(queue, 'read', at, into, start, length);
    return queue.device.read(queue.below(at), into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    const queue = this.#writes;
    if (this.#waits(queue)) return this.#hold(queue, 'write', at, from, start, length);
    return queue.device.write(queue.below(at), from, start, length);
  }

  flush(): Maybe {
    const queue = this.#flushes;
    if (this.#waits(queue)) return this.#hold(queue, 'flush', bytes(0), NO_BUFFER, 0, 0);
    return queue.device.flush();
  }

  discard(at: Bytes, length: number): Maybe {
    const queue = this.#writes;
    if (this.#waits(queue)) return this.#hold(queue, 'discard', at, NO_BUFFER, 0, length);
    return queue.device.discard(queue.below(at), length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    const queue = this.#writes;
    if (this.#waits(queue)) return this.#hold(queue, 'writeZeroes', at, NO_BUFFER, 0, length, mayUnmap);
    return queue.device.writeZeroes(queue.below(at), length, mayUnmap);
  }

  /** Tells of where reads go, and no data passes: at once. */
  extents(at: Bytes, length: number): Maybe<Extent[]> {
    return this.#reads.device.extents(this.#reads.below(at), length);
  }

  status(kind: StatusKind): string {
    if (kind === 'info') return this.#queues.map(({ length }) => length).join(' ');
    if (kind === 'measure') return '';
    return this.#lanes.map(({ device, start, delay }) => `${deviceWord(device)} ${start} ${delay}`).join(' ');
  }

  /** A suspend does not wait for delays. */
  presuspend(): void {
    this.#delaying = false;
    this.#stopTimer();
    this.#sendUntil(Number.POSITIVE_INFINITY);
  }

  presuspendUndo(): void {
    this.#delaying = true;
  }

  resume(): void {
    this.#delaying = true;
  }

  async close(): Promise<void> {
    this.#stopTimer();
  }

  #waits(queue: Queue): boolean {
    return queue.delay > 0 && this.#delaying;
  }

  #hold(
    queue: Queue,
    operation: Operation,
    at: Bytes,
    buffer: Uint8Array,
    start: number,
    length: number,
    mayUnmap = false,
  ): Promise<void> {
    const due = this.#clock.now() + queue.delay;
    return new Promise((resolve, reject) => {
      queue.push({ order: this.#order++, due, operation, at, buffer, start, length, mayUnmap, resolve, reject });
      this.#wakeAt(due);
    });
  }

  /** One timer for all: it is set anew only for what is due earlier. */
  #wakeAt(due: number): void {
    if (this.#cancel && this.#wakes <= due) return;
    this.#stopTimer();
    this.#wakes = due;
    this.#cancel = this.#clock.after(Math.max(0, due - this.#clock.now()), this.#wake);
  }

  readonly #wake = (): void => {
    this.#cancel = undefined;
    this.#sendUntil(this.#clock.now());
    let next: number | undefined;
    for (const { first } of this.#queues) if (first && (next === undefined || first.due < next)) next = first.due;
    if (next !== undefined) this.#wakeAt(next);
  };

  #stopTimer(): void {
    this.#cancel?.();
    this.#cancel = undefined;
  }

  /** Sends what is due, in the order in which it came. */
  #sendUntil(now: number): void {
    for (;;) {
      let next: Queue | undefined;
      for (const queue of this.#queues) {
        const { first } = queue;
        if (first && first.due <= now && (!next || first.order < next.first!.order)) next = queue;
      }
      if (!next) return;
      next.send();
    }
  }
}
