/** An origin, its snapshots and a mapper over disks that obey (`ScriptedDevice`), for tests of the snapshot engine. */
import { expect, onTestFinished } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { OriginBuffer } from '../../src/targets/snapshot/origin-buffer.ts';
import { FakeDisks } from '../../src/testing/fake-disks.ts';
import { ScriptedDevice } from '../../src/testing/scripted-device.ts';
import { bytes, SECTOR } from '../../src/units.ts';
import { pattern } from '../unit/golden.ts';

// Byte by byte, as vitest does it, a few megabytes take minutes.
expect.addEqualityTesters([(a, b) => (Buffer.isBuffer(a) && Buffer.isBuffer(b) ? a.equals(b) : undefined)]);

// Every write of an origin waits for its copies, unless a test asks for something else before it makes its rig.
OriginBuffer.pages = 0;

/** Sectors of what the origin holds at first, of what is written through a snapshot, and through the origin. */
export const old = (sector: number, count: number) => pattern('a', sector, count);
export const snapshotData = (sector: number, count: number) => pattern('b', sector, count);
export const originData = (sector: number, count: number) => pattern('c', sector, count);

export interface DiskOptions {
  blockSize?: number;
  /** Fills the disk. */
  content?: Uint8Array;
}

/** Sectors of one area or header, and what the snapshot is made of. */
export interface RigOptions {
  /** Chunk size in sectors. */
  C?: number;
  /** Sectors of the origin and of the COW device. */
  O?: number;
  W?: number;
  /** `P`, `PO` or `N`. */
  store?: string;
  /** Behind the chunk size. */
  features?: string;
}

export class Rig {
  readonly disks = new FakeDisks();
  /** What is done for a target that has no room left on a disk. */
  enlarge: (disk: BlockDevice) => boolean = () => false;
  readonly mapper = new Mapper({ opener: this.disks, enlarge: (_device, below) => this.enlarge(below) });
  /** All disks' operations, `1:1 W 16+8`. */
  readonly log: string[] = [];
  readonly #memory = new Map<ScriptedDevice, MemoryDevice>();

  /** Makes a disk numbered `1:N`, with the path `/dev/ramN`. */
  disk(index: number, sectors: number, { blockSize = 512, content }: DiskOptions = {}): ScriptedDevice {
    const memory = new MemoryDevice(sectors * SECTOR, { name: `1:${index}`, blockSize });
    if (content) memory.write(bytes(0), content, 0, content.length);
    const disk = new ScriptedDevice(memory, (entry) => this.log.push(`1:${index} ${entry}`));
    this.#memory.set(disk, memory);
    this.disks.add(disk, `/dev/ram${index}`);
    return disk;
  }

  resize(disk: ScriptedDevice, sectors: number): void {
    this.#memory.get(disk)!.size = bytes(sectors * SECTOR);
  }

  /** What is on the disk, past faults and log. */
  peek(disk: ScriptedDevice, sector: number, count: number): Buffer {
    const found = Buffer.alloc(count * SECTOR);
    this.#memory.get(disk)!.read(bytes(sector * SECTOR), found, 0, found.length);
    return found;
  }

  poke(disk: ScriptedDevice, sector: number, content: Uint8Array): void {
    this.#memory.get(disk)!.write(bytes(sector * SECTOR), content, 0, content.length);
  }

  async load(name: string, ...lines: string[]): Promise<void> {
    await this.mapper.load({ name }, lines.map(targetSpec));
  }

  async resume(name: string): Promise<void> {
    await this.mapper.resume({ name });
  }

  async suspend(name: string): Promise<void> {
    await this.mapper.suspend({ name });
  }

  async remove(name: string): Promise<void> {
    await this.mapper.remove({ name });
  }

  /** As `dmsetup create --table`: nothing is left of a device whose table is refused. */
  async create(name: string, ...lines: string[]): Promise<void> {
    await this.mapper.create(name);
    try {
      await this.load(name, ...lines);
      await this.resume(name);
    } catch (error) {
      await this.remove(name);
      throw error;
    }
  }

  async recreate(name: string, ...lines: string[]): Promise<void> {
    await this.remove(name);
    await this.create(name, ...lines);
  }

  /** The words after the type, of the last target. */
  async status(name: string, inactive = false): Promise<string> {
    return (await this.mapper.status({ name }, { inactive })).at(-1)!.text;
  }

  async table(name: string, inactive = false): Promise<string> {
    return (await this.mapper.table({ name }, { inactive })).at(-1)!.text;
  }

  async event(name: string): Promise<number> {
    return (await this.mapper.info({ name })).eventNumber;
  }

  async read(name: string, sector: number, count: number): Promise<Buffer> {
    const found = Buffer.alloc(count * SECTOR, 0xee);
    await this.mapper.device({ name }).read(bytes(sector * SECTOR), found, 0, found.length);
    return found;
  }

  /** Starts the write before it returns. */
  async write(name: string, sector: number, content: Uint8Array): Promise<void> {
    await this.mapper.device({ name }).write(bytes(sector * SECTOR), content, 0, content.length);
  }

  async flush(name: string): Promise<void> {
    await this.mapper.device({ name }).flush();
  }

  async discard(name: string, sector: number, count: number): Promise<void> {
    await this.mapper.device({ name }).discard(bytes(sector * SECTOR), count * SECTOR);
  }

  async writeZeroes(name: string, sector: number, count: number, mayUnmap = true): Promise<void> {
    await this.mapper.device({ name }).writeZeroes(bytes(sector * SECTOR), count * SECTOR, mayUnmap);
  }

  /** Writes one sector at the start of each of `chunks` through the origin, one after the other. */
  async touch(chunks: Iterable<number>, C: number, name = 'origin'): Promise<void> {
    for (const chunk of chunks) await this.write(name, chunk * C, originData(chunk * C, 1));
  }
}

/** `origin` over /dev/ram0 (filled with `old`) and the snapshot `snap` with its exceptions on /dev/ram1. */
export async function rigWith({ C = 16, O = 4096, W = 1024, store = 'P', features = '' }: RigOptions = {}) {
  const rig = new Rig();
  const origin = rig.disk(0, O, { content: old(0, O) });
  const cow = rig.disk(1, W);
  const line = `0 ${O} snapshot /dev/ram0 /dev/ram1 ${store} ${C} ${features}`.trim();
  await rig.create('origin', `0 ${O} snapshot-origin /dev/ram0`);
  await rig.create('snap', line);
  closeAfterwards(rig);
  origin.takeLog();
  cow.takeLog();
  rig.log.length = 0;
  return { rig, origin, cow, line };
}

/** Every device goes at the end of a test, so that a test that leaves something waiting fails. */
export function closeAfterwards(rig: Rig): void {
  onTestFinished(async () => {
    for (const { name } of await rig.mapper.list()) if (name === 'snap') await rig.remove(name).catch(() => {});
    await rig.mapper.removeAll().catch(() => {});
  });
}

/** Lets everything run that waits for nothing but its turn. */
export async function turns(count = 20): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Whether a promise has settled, without waiting for it. */
export function watch(promise: Promise<unknown>): { done: boolean } {
  const state = { done: false };
  const end = () => {
    state.done = true;
  };
  promise.then(end, end);
  return state;
}

/** The entries of area `index` of an exception store as it is on the disk. */
export function areaOf(rig: Rig, cow: ScriptedDevice, C: number, index = 0): [number, number][] {
  const entries = C * 32;
  const area = rig.peek(cow, (1 + index * (entries + 1)) * C, C);
  const found: [number, number][] = [];
  for (let at = 0; at < area.length; at += 16) {
    const newChunk = Number(area.readBigUInt64LE(at + 8));
    if (newChunk === 0) break;
    found.push([Number(area.readBigUInt64LE(at)), newChunk]);
  }
  return found;
}

/** The four numbers of a header: magic, valid, version, chunk size. */
export const headerOf = (rig: Rig, cow: ScriptedDevice) => {
  const head = rig.peek(cow, 0, 1);
  return [0, 4, 8, 12].map((at) => head.readUInt32LE(at));
};

export const MAGIC = 0x70416e53;

/** A chunk that holds a header. */
export function header(magic: number, valid: number, version: number, chunkSize: number): Buffer {
  const chunk = Buffer.alloc(SECTOR);
  for (const [i, value] of [magic, valid, version, chunkSize].entries()) chunk.writeUInt32LE(value, i * 4);
  return chunk;
}

/** An area of C sectors that holds the entries. */
export function area(C: number, entries: readonly (readonly [number | bigint, number | bigint])[]): Buffer {
  const found = Buffer.alloc(C * SECTOR);
  for (const [i, [oldChunk, newChunk]] of entries.entries()) {
    found.writeBigUInt64LE(BigInt(oldChunk), i * 16);
    found.writeBigUInt64LE(BigInt(newChunk), i * 16 + 8);
  }
  return found;
}

function targetSpec(line: string) {
  const [start, length, type, ...args] = line.split(' ');
  return { start: Number(start), length: Number(length), type, args: args.join(' ') };
}
