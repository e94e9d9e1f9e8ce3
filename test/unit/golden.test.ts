/**
 * What a real kernel wrote (test/fixtures/kernel) is repeated, opened and continued: the same table and status lines,
 * the same refused writes, the same checksums, and the same bytes on every disk.
 */
import { describe, expect, it } from 'vitest';
import { DmError } from '../../src/errors.ts';
import { Session } from '../support/session.ts';
import { loadImage, loadSteps, pattern, type Step, sha256 } from './golden.ts';
import { attach, deviceOf, expectImage, indexOfKeep, lineOf, type Recorded, replay } from './golden-replay.ts';

interface Case extends Recorded {
  /** Sectors of /dev/loop0, which holds pattern `a`, and of the COW devices from /dev/loop1 on. */
  origin: number;
  cows: number[];
  /** How often the log has each kind of step, so that nothing is lost in reading. */
  counts: Partial<Record<Step['kind'], number>>;
}

const single = (chunk: number, origin: number): Case => ({
  folder: `snapshot-${chunk}`,
  origin,
  cows: [16384],
  kept: { 'origin-1.img': 0, 'origin-2.img': 0, 'cow-1.img': 1, 'cow-2.img': 1 },
  counts: { put: 100, state: 4, sha256: 6, keep: 4, command: 7 },
});

const cases: Case[] = [
  single(8, 32776),
  single(16, 32768),
  single(128, 32768),
  {
    folder: 'multi',
    origin: 24576,
    cows: [32768, 32768, 32768],
    kept: { 'origin.img': 0, 'cow0.img': 1, 'cow1.img': 2, 'cow2.img': 3 },
    counts: { put: 105, state: 4, sha256: 4, keep: 4, command: 15 },
  },
  {
    folder: 'overflow',
    origin: 16384,
    cows: [640, 160, 160],
    kept: { 'origin.img': 0, 'cow.img': 1, 'cow3.img': 3 },
    counts: { put: 86, state: 10, sha256: 1, keep: 3, command: 13 },
  },
];

/** The last status line of a device, and its checksum, that the log has before a step. */
function lastKnown(steps: readonly Step[], name: string) {
  const states = steps.filter((step) => step.kind === 'state');
  const status = states.flatMap((step) => step.lines.filter((line) => line.startsWith(`status ${name}: `))).at(-1);
  const sum = steps.filter((step) => step.kind === 'sha256' && deviceOf(step) === name).at(-1);
  return { status, hash: sum?.kind === 'sha256' ? sum.hash : undefined };
}

describe.each(cases)('$folder', (golden) => {
  const { folder, origin, cows, counts } = golden;
  const steps = loadSteps(folder);
  const start = () => {
    const session = new Session();
    session.loop(0, origin, pattern('a', 0, origin));
    for (const [i, sectors] of cows.entries()) session.loop(i + 1, sectors);
    return session;
  };

  it('has a log of which every line is understood', () => {
    for (const [kind, count] of Object.entries(counts))
      expect(steps.filter((step) => step.kind === kind).length, kind).toBe(count);
  });

  it('repeated gives what the kernel printed and wrote', () => replay(start(), steps, golden));
});

/** Opens images as the kernel left them: the origin as base-real, the store as `name`. */
async function open(folder: string, images: string[], name: string, store: string): Promise<Session> {
  const session = await attach(folder, images);
  const sectors = (await session.content(0)).length / 512;
  await session.dmsetup(['create', name, '--table', `0 ${sectors} snapshot /dev/mapper/base-real /dev/loop1 ${store}`]);
  return session;
}

const statusOf = (session: Session, name: string) => lineOf(session, 'status', name);

describe("the kernel's stores", () => {
  const singles = [8, 16, 128].flatMap((chunk) => [1, 2].map((n) => [`snapshot-${chunk}`, n, chunk] as const));
  it.each(singles)('%s: store %i opens with its status and sum, whatever chunk size the table says', async (...row) => {
    const [folder, n, chunk] = row;
    const steps = loadSteps(folder);
    const known = lastKnown(steps.slice(0, indexOfKeep(steps, `cow-${n}.img`)), 'snap');
    for (const asked of [0, chunk, 64]) {
      const session = await open(folder, [`origin-${n}.img`, `cow-${n}.img`], 'snap', `P ${asked}`);
      expect(await statusOf(session, 'snap')).toBe(known.status);
      expect(await session.state()).toContainEqual(expect.stringMatching(new RegExp(`snapshot 253:0 7:1 P ${chunk}$`)));
      expect(await session.sum('snap')).toBe(known.hash);
      await session.close();
      // To open and close a store changes nothing.
      await expectImage(session, folder, `cow-${n}.img`, 1);
    }
  });

  it.each(cases.slice(0, 3))('$folder: a store is continued to the same bytes', async (golden) => {
    const { folder } = golden;
    const steps = loadSteps(folder);
    const name = steps[1].kind === 'command' && (steps[1].words.at(-1) as string);
    const session = await open(
      folder,
      ['origin-1.img', 'cow-1.img'],
      'snap',
      (name as string).split(' ').slice(-2).join(' '),
    );
    await session.dmsetup(['create', 'base', '--table', `0 ${golden.origin} snapshot-origin /dev/mapper/base-real`]);
    await replay(session, steps.slice(indexOfKeep(steps, 'origin-1.img') + 1), golden);
  });

  it.each([0, 1, 2])('multi: store %i opens with its status and sum', async (n) => {
    const known = lastKnown(loadSteps('multi'), `snap${n}`);
    const session = await open('multi', ['origin.img', `cow${n}.img`], `snap${n}`, 'P 0');
    expect((await statusOf(session, `snap${n}`))?.replace(/7:\d/, '7:N')).toBe(known.status?.replace(/7:\d/, '7:N'));
    expect(await session.sum(`snap${n}`)).toBe(known.hash);
  });

  it('overflow: a store that was invalidated stays so, and is read no more', async () => {
    const session = await open('overflow', ['origin.img', 'cow.img'], 'snap', 'P 16');
    expect(await statusOf(session, 'snap')).toBe('status snap: 0 16384 snapshot Invalid');
    await expect(session.sum('snap')).rejects.toThrow(DmError);
    await session.close();
    await expectImage(session, 'overflow', 'cow.img', 1);
  });

  it('overflow: a full PO store opens again with all eight chunks, and full', async () => {
    const session = await open('overflow', ['origin.img', 'cow3.img'], 'p', 'PO 16');
    expect(await statusOf(session, 'p')).toBe('status p: 0 16384 snapshot 160/160 32');
    const expected = loadImage('overflow', 'origin.img');
    for (let i = 0; i < 8; i++) expected.set(pattern('b', i * 16, 16), i * 32 * 512);
    expect(await session.sum('p')).toBe(sha256(expected));
    expect(await session.put('p', 1000, pattern('b', 0, 1))).toBe('Input/output error');
    expect(await statusOf(session, 'p')).toBe('status p: 0 16384 snapshot Overflow');
  });
});
