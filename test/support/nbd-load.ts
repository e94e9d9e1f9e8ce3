/**
 * Load on an NBD export that knows, for every sector, what the disk may hold when the server dies: what was written
 * and covered by an acknowledged flush, or anything that was sent later. No client of others' keeps such a record.
 */
import { NbdConnection, NbdRequest } from '../../src/device/nbd-connection.ts';
import { connectNbd } from '../../src/device/nbd-handshake.ts';
import type { Errno } from '../../src/errors.ts';
import { CMD, CMD_FLAG } from '../../src/formats/nbd/constants.ts';
import { parseNbdUri } from '../../src/formats/nbd/uri.ts';
import type { Prng } from '../../src/lib/prng.ts';
import { SECTOR } from '../../src/units.ts';

/** Sectors of the longest request. */
const LENGTH_MAX = 48;
/** Bytes of one read when everything is read back. */
const READ_BACK = 1024 * 1024;

/** Of all disks, so that no two writes are alike. */
let lastVersion = 0;

/** The sectors of one disk: what they held when the load began, and what was sent to them since. */
export class Image {
  /** In every sector written here; no other disk has it. */
  readonly tag: number;
  /** Content at the beginning. */
  settled: Buffer;
  /** By sector, 0 for none: the version sent last, the one acknowledged last, and the one a flush covered last. */
  readonly #sent: Uint32Array;
  readonly #acked: Uint32Array;
  readonly #flushed: Uint32Array;
  /** The version sent last that is zeroes. */
  readonly #zeroes: Uint32Array;
  /** In a request under way: two writes of one sector at once would have no order. */
  readonly #busy: Uint8Array;
  #dead = false;
  /** Acknowledged writes that no flush has covered yet, in order of acknowledgement. */
  #log: { from: number; to: number; version: number }[] = [];
  #logStart = 0;

  constructor(tag: number, settled: Buffer) {
    this.tag = tag;
    this.settled = settled;
    const sectors = settled.length / SECTOR;
    this.#sent = new Uint32Array(sectors);
    this.#acked = new Uint32Array(sectors);
    this.#flushed = new Uint32Array(sectors);
    this.#zeroes = new Uint32Array(sectors);
    this.#busy = new Uint8Array(sectors);
  }

  get sectors(): number {
    return this.#sent.length;
  }

  /** Takes the sectors for one request; false when one of them is in use. */
  take(from: number, to: number): boolean {
    for (let sector = from; sector < to; sector++) if (this.#busy[sector]) return false;
    this.#busy.fill(1, from, to);
    return true;
  }

  release(from: number, to: number): void {
    this.#busy.fill(0, from, to);
  }

  /** A new version of these sectors is on its way. */
  send(from: number, to: number, zeroes: boolean): number {
    const version = ++lastVersion;
    this.#sent.fill(version, from, to);
    if (zeroes) this.#zeroes.fill(version, from, to);
    return version;
  }

  acknowledge(from: number, to: number, version: number, durable: boolean): void {
    this.#acked.fill(version, from, to);
    if (this.#dead) return;
    if (durable) this.#flushed.fill(version, from, to);
    else this.#log.push({ from, to, version });
  }

  /** What a flush that is sent now covers. */
  get mark(): number {
    return this.#logStart + this.#log.length;
  }

  /** The disk was brought to an end in order: what was acknowledged is there, flushed or not. */
  stop(): void {
    this.#flushed.set(this.#acked);
  }

  /** From now on nothing that is acknowledged need be there after the crash: the disk has stopped writing. */
  die(): void {
    this.#dead = true;
  }

  flushed(mark: number): void {
    if (this.#dead) return;
    const covered = this.#log.splice(0, Math.max(0, mark - this.#logStart));
    this.#logStart += covered.length;
    for (const { from, to, version } of covered)
      for (let sector = from; sector < to; sector++)
        if (this.#flushed[sector] < version) this.#flushed[sector] = version;
  }

  fill(into: Buffer, from: number, version: number): void {
    const words = new Uint32Array(into.buffer, into.byteOffset, into.length / 4);
    for (let at = 0; at < words.length; at += 4) {
      words[at] = this.tag;
      words[at + 1] = from + Math.floor(at / (SECTOR / 4));
      words[at + 2] = version;
      words[at + 3] = ~version;
    }
  }

  /** What is wrong with sectors that a client read while nobody wrote them; undefined when they are as acknowledged. */
  faultNow(content: Buffer, from: number): string | undefined {
    return this.#fault(content, from, (sector) => this.#acked[sector]);
  }

  /** What is wrong with the whole disk after a crash; undefined when nothing that was flushed is lost. */
  faultAfterCrash(content: Buffer): string | undefined {
    return this.#fault(content, 0, (sector) => this.#flushed[sector]);
  }

  /** From now on the disk holds this, and nothing else. */
  settle(content: Buffer): void {
    this.settled = content;
    for (const versions of [this.#sent, this.#acked, this.#flushed, this.#zeroes]) versions.fill(0);
    this.#busy.fill(0);
    this.#dead = false;
    this.#logStart += this.#log.length;
    this.#log = [];
  }

  /** Each sector holds the version that `oldest` tells or a later one; 0 is what it held at the beginning. */
  #fault(content: Buffer, from: number, oldest: (sector: number) => number): string | undefined {
    const words = new Uint32Array(content.buffer, content.byteOffset, content.length / 4);
    for (let index = 0; index < content.length / SECTOR; index++) {
      const sector = from + index;
      const least = oldest(sector);
      const [begin, end] = [index * SECTOR, (index + 1) * SECTOR];
      if (least === 0 && this.settled.compare(content, begin, end, sector * SECTOR, (sector + 1) * SECTOR) === 0)
        continue;
      const version = this.#versionAt(words, begin / 4, sector);
      if (version !== undefined && version >= least && version <= this.#sent[sector]) continue;
      const [tag, where, which] = words.subarray(begin / 4, begin / 4 + 3);
      return `sector ${sector} of disk ${this.tag} must hold version ${least} to ${this.#sent[sector]}; it holds ${version ?? `version ${which} of sector ${where} of disk ${tag}`}`;
    }
  }

  /** Undefined: torn within the sector, or nothing that was ever sent to it. */
  #versionAt(words: Uint32Array, start: number, sector: number): number | undefined {
    const version = words[start + 2];
    const zeroes = words[start] === 0;
    for (let at = start; at < start + SECTOR / 4; at += 4) {
      const own =
        words[at] === this.tag &&
        words[at + 1] === sector &&
        words[at + 2] === version &&
        words[at + 3] === ~version >>> 0;
      const empty = words[at] === 0 && words[at + 1] === 0 && words[at + 2] === 0 && words[at + 3] === 0;
      if (zeroes ? !empty : !own) return undefined;
    }
    if (!zeroes) return version;
    return this.#zeroes[sector] === 0 ? undefined : this.#zeroes[sector];
  }
}

export interface LoadOptions {
  /** How many requests each connection has under way. */
  depth: number;
  random: Prng;
  /** Where most requests go, in sectors. */
  hot: { from: number; length: number };
  /** Each reply. */
  answered(): void;
  /** What the disk may answer to a write besides success: a COW device that is full. */
  mayFail?: readonly Errno[];
}

/** One connection that reads, writes, zeroes and flushes at random until it is stopped or the server goes away. */
export class Load {
  /** Settles when the connection has ended. */
  readonly ended: Promise<void>;
  /** The first reply that was wrong. */
  fault: string | undefined;
  readonly #image: Image;
  readonly #options: LoadOptions;
  #connection!: NbdConnection;
  #under = 0;
  #stopping = false;
  #end = () => {};

  static async start(uri: string, image: Image, options: LoadOptions): Promise<Load> {
    const link = await connectNbd(parseNbdUri(uri));
    const load = new Load(image, options);
    load.#connection = new NbdConnection(link, {
      answered: (request) => load.#answered(request),
      closed: () => load.#end(),
    });
    for (let i = 0; i < options.depth; i++) load.#next();
    return load;
  }

  private constructor(image: Image, options: LoadOptions) {
    this.#image = image;
    this.#options = options;
    this.ended = new Promise((resolve) => (this.#end = resolve));
  }

  /** Sends no more, waits for the replies and says good-bye. */
  async stop(): Promise<void> {
    this.#stopping = true;
    if (this.#under === 0) await this.#connection.disconnect();
    await this.ended;
  }

  #next(): void {
    if (this.#stopping) {
      if (this.#under === 0) void this.#connection.disconnect();
      return;
    }
    const { random } = this.#options;
    const [from, to] = this.#place();
    if (random.chance(0.08) || !this.#image.take(from, to)) this.#flush();
    else if (random.chance(0.2)) this.#read(from, to);
    else if (random.chance(0.06)) this.#zero(from, to);
    else this.#write(from, to, random.chance(0.08));
  }

  #place(): [from: number, to: number] {
    const { random, hot } = this.#options;
    const { sectors } = this.#image;
    // Whole blocks mostly, as file systems write them; now and then single sectors.
    const unit = random.chance(0.8) ? 8 : 1;
    const length = unit * (1 + random.below(random.chance(0.2) ? LENGTH_MAX / unit : 2));
    const within = random.chance(0.8) ? hot.from + random.below(hot.length) : random.below(sectors);
    const from = Math.min(Math.floor(within / unit) * unit, sectors - length);
    return [from, from + length];
  }

  #flush(): void {
    const { mark } = this.#image;
    this.#send(CMD.FLUSH, 0, 0, 0, undefined, (errno) => {
      if (errno === undefined) this.#image.flushed(mark);
      return errno;
    });
  }

  #read(from: number, to: number): void {
    const into = Buffer.alloc((to - from) * SECTOR);
    this.#send(CMD.READ, 0, from, to, into, (errno) => {
      if (errno === undefined) this.fault ??= this.#image.faultNow(into, from);
      return errno;
    });
  }

  #write(from: number, to: number, durable: boolean): void {
    const version = this.#image.send(from, to, false);
    const data = Buffer.alloc((to - from) * SECTOR);
    this.#image.fill(data, from, version);
    this.#send(CMD.WRITE, durable ? CMD_FLAG.FUA : 0, from, to, data, (errno) => {
      if (errno === undefined) this.#image.acknowledge(from, to, version, durable);
      return errno;
    });
  }

  #zero(from: number, to: number): void {
    const version = this.#image.send(from, to, true);
    this.#send(CMD.WRITE_ZEROES, 0, from, to, undefined, (errno) => {
      if (errno === undefined) this.#image.acknowledge(from, to, version, false);
      return errno;
    });
  }

  #send(
    type: number,
    flags: number,
    from: number,
    to: number,
    data: Buffer | undefined,
    done: (errno: Errno | undefined) => Errno | undefined,
  ): void {
    this.#under++;
    const request = new NbdRequest(
      type,
      flags,
      from * SECTOR,
      (to - from) * SECTOR,
      data,
      0,
      () => {
        const errno = done(request.errno);
        this.#image.release(from, to);
        if (errno !== undefined && !this.#options.mayFail?.includes(errno))
          this.fault ??= `command ${type} at sector ${from} of disk ${this.#image.tag} was answered with ${errno}: ${request.message}`;
      },
      () => {},
    );
    this.#connection.send(request);
  }

  #answered(request: NbdRequest): void {
    this.#under--;
    request.resolve();
    this.#options.answered();
    this.#next();
  }
}

/** The whole of an export. Throws what the server answered. */
export async function readExport(uri: string): Promise<Buffer> {
  const link = await connectNbd(parseNbdUri(uri));
  const content = Buffer.alloc(link.geometry.size);
  let left = 0;
  await new Promise<void>((resolve, reject) => {
    const connection = new NbdConnection(link, {
      answered: (request) => {
        if (request.errno !== undefined) reject(new Error(`read of ${uri}: ${request.errno} ${request.message}`));
        else if (--left === 0) {
          resolve();
          void connection.disconnect();
        }
      },
      closed: (_pending, reason) => reject(reason ?? new Error(`read of ${uri}: the connection ended`)),
    });
    for (let at = 0; at < content.length; at += READ_BACK, left++) {
      const length = Math.min(READ_BACK, content.length - at);
      connection.send(
        new NbdRequest(
          CMD.READ,
          0,
          at,
          length,
          content,
          at,
          () => {},
          () => {},
        ),
      );
    }
  });
  return content;
}
