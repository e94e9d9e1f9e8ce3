/**
 * A bound on the memory that payloads and replies of all connections take together.
 *
 * Every connection has a little of its own (`OWN_BYTES`), so that small requests never wait for anybody. What it holds
 * beyond comes out of a common stock. When that is used up, the next request of a connection that needs more is not
 * parsed and its socket is not read; it stands in line, first come, first served, for one request at a time.
 *
 * Each device has a line of its own, and the connections to it may take only as much of the stock as they leave to
 * others: half of it if they are alone. So a device that is slow, or hangs, may keep all that its clients were given,
 * and others go on.
 *
 * Nobody waits for ever. What is held is given back
 *
 * - when the device completes the request: not the client's fault, however long it takes;
 * - when the client has sent the rest of a payload, or taken a reply. While others stand in line it has a time limit for
 *   that, and is cut off beyond it. The limit is on the whole of a payload or a reply, so a client that is alive but
 *   moves a byte a minute is cut off too.
 *
 * A connection in line asks for all that its next request needs at once and holds nothing for it meanwhile.
 */
import { SMALLEST_BUFFER } from './reply-buffers.ts';

/**
 * What a connection always has: two buffers to receive, one for replies, and one for a payload of up to 64 KiB. A fifth may
 * come unasked, when the one that is received into is full of requests that have to wait.
 */
export const OWN_BYTES = 4 * SMALLEST_BUFFER;

/** A connection, as the memory sees it. */
export interface Holder {
  /** The request that had to wait may be tried again. */
  wake(): void;
  /**
   * What the client has completed so far, payloads and replies: a number that grows. Undefined when nothing that is held
   * depends on the client.
   */
  progress(): number | undefined;
  /** The time limit has passed. */
  cutOff(): void;
}

/** The connections to a device. */
interface Group {
  /** Of the common stock. */
  used: number;
  /** In the order of their coming. */
  readonly line: Set<Share>;
}

export class Memory {
  /** What the connections may hold together, in bytes. A single request that is larger than all of it is served alone. */
  limit: number;
  readonly #stallMs: number;
  /** Of the common stock. */
  #used = 0;
  readonly #shares = new Set<Share>();
  readonly #groups = new WeakMap<object, Group>();
  /** Those with a line. */
  readonly #waiting = new Set<Group>();
  #wakePlanned = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(limit: number, stallMs: number) {
    this.limit = limit;
    this.#stallMs = stallMs;
  }

  /** Bytes held at this moment, those of the connections' own included. */
  get held(): number {
    let held = 0;
    for (const share of this.#shares) held += share.held;
    return held;
  }

  /** `weight`: how often each byte is there; `device`: what its requests wait for. */
  join(holder: Holder, weight: number, device: object = this): Share {
    let group = this.#groups.get(device);
    if (!group) this.#groups.set(device, (group = { used: 0, line: new Set() }));
    const share = new Share(this, holder, weight, group);
    this.#shares.add(share);
    return share;
  }

  leave(share: Share): void {
    this.leaveLine(share);
    if (share.held === 0) this.#shares.delete(share);
  }

  /** To be called with what a share holds before and after a change. */
  changed(share: Share, before: number): void {
    const more = beyondOwn(share.held) - beyondOwn(before);
    this.#used += more;
    share.group.used += more;
    if (share.held < before && this.#waiting.size > 0) this.#planWake();
    if (share.held === 0 && share.left) this.#shares.delete(share);
  }

  /** Whether the share may hold so many bytes more. If not it is in line, and its holder will be woken. */
  admits(share: Share, bytes: number): boolean {
    const more = beyondOwn(share.held + bytes) - beyondOwn(share.held);
    if (more > 0) {
      const { group } = share;
      const first = group.line.size === 0 || group.line.values().next().value === share;
      if (!first || !this.#mayHave(group, more)) {
        group.line.add(share);
        this.#waiting.add(group);
        share.waits = true;
        this.#timer ??= this.#watch();
        return false;
      }
    }
    this.leaveLine(share);
    return true;
  }

  #mayHave(group: Group, more: number): boolean {
    const left = this.limit - this.#used - more;
    // The first one of all, or of its device, may be as large as it likes.
    return this.#used === 0 || (left >= 0 && (group.used === 0 || group.used + more <= left));
  }

  leaveLine(share: Share): void {
    if (!share.waits) return;
    share.waits = false;
    const { line } = share.group;
    line.delete(share);
    if (line.size === 0) this.#waiting.delete(share.group);
    if (this.#waiting.size > 0) this.#planWake();
    else {
      clearTimeout(this.#timer);
      this.#timer = undefined;
    }
  }

  /** In a turn of its own: whoever gives memory back is in the middle of something. */
  #planWake(): void {
    if (this.#wakePlanned) return;
    this.#wakePlanned = true;
    setImmediate(() => {
      this.#wakePlanned = false;
      for (const { line } of [...this.#waiting]) {
        const [first] = line;
        first?.holder.wake();
      }
    });
  }

  /** Cuts off who completes nothing while others wait for the whole of the time limit. */
  #watch(): NodeJS.Timeout {
    const before = new Map<Share, number>();
    for (const share of this.#shares) {
      const progress = share.held > OWN_BYTES ? share.holder.progress() : undefined;
      if (progress !== undefined) before.set(share, progress);
    }
    const timer = setTimeout(() => {
      for (const [share, progress] of before) {
        if (share.held > OWN_BYTES && share.holder.progress() === progress) share.holder.cutOff();
      }
      this.#timer = this.#waiting.size > 0 ? this.#watch() : undefined;
    }, this.#stallMs);
    return timer.unref();
  }
}

const beyondOwn = (held: number) => Math.max(0, held - OWN_BYTES);

/** What one connection holds. */
export class Share {
  /** Bytes. */
  held = 0;
  /** Stands in line. */
  waits = false;
  /** The connection is gone; what it holds will be given back. */
  left = false;
  readonly holder: Holder;
  readonly group: Group;
  readonly #memory: Memory;
  readonly #weight: number;

  constructor(memory: Memory, holder: Holder, weight: number, group: Group) {
    this.#memory = memory;
    this.group = group;
    this.holder = holder;
    this.#weight = weight;
  }

  /** Whether a request that needs so many bytes may be taken now. If not, its holder is woken when it is worth a try. */
  admits(bytes: number): boolean {
    const more = bytes * this.#weight;
    // What most requests of most connections come to.
    if (!this.waits && this.held + more <= OWN_BYTES) return true;
    return this.#memory.admits(this, more);
  }

  /** Counts what is held from now on, whether it was asked for or not. */
  take(bytes: number): void {
    const before = this.held;
    this.held += bytes * this.#weight;
    this.#memory.changed(this, before);
  }

  give(bytes: number): void {
    const before = this.held;
    this.held -= bytes * this.#weight;
    this.#memory.changed(this, before);
  }

  /** Asks for nothing at present. */
  leaveLine(): void {
    this.#memory.leaveLine(this);
  }

  /** The connection is gone. */
  leave(): void {
    this.left = true;
    this.#memory.leave(this);
  }
}
