/** Repeats recorded logs (test/fixtures/kernel) on dmkit and compares all that they say. */
import { expect } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { bytes, SECTOR } from '../../src/units.ts';
import { Session } from '../support/session.ts';
import { loadImage, pattern, type Step, sha256 } from './golden.ts';

export interface Recorded {
  folder: string;
  /** By the name of a kept image: the number of the loop device. */
  kept: Record<string, number>;
}

/** Repeats the steps and compares all that the log says. */
export async function replay(session: Session, steps: readonly Step[], { folder, kept }: Recorded): Promise<void> {
  for (const [number, step] of steps.entries()) {
    const where = `${folder}, step ${number}`;
    if (step.kind === 'command') await command(session, step);
    else if (step.kind === 'put') {
      const content = pattern(step.tag, step.skip, step.count);
      expect(await session.put(step.device, step.seek, content), where).toBe(step.failed);
    } else if (step.kind === 'state') expect(await session.state(), `${where}: ${step.label}`).toEqual(step.lines);
    else if (step.kind === 'sha256') expect(await session.sum(deviceOf(step)), where).toBe(step.hash);
    else if (step.kind === 'keep') await expectImage(session, folder, step.image, kept[step.image]);
    else throw new Error(`${where}: what was seen while something ran cannot be repeated`);
  }
}

async function command(session: Session, { words, exit }: Step & { kind: 'command' }): Promise<void> {
  if (words[0] === 'dmsetup') {
    expect(exit).toBe(0);
    return session.dmsetup(words.slice(1));
  }
  // dd if=DEVICE of=/dev/null bs=4k count=1
  const name = words[1].replace('if=/dev/mapper/', '');
  const into = new Uint8Array(4096);
  const reading = (async () => session.mapper.device({ name }).read(bytes(0), into, 0, 4096))();
  if (exit === 0) await reading;
  else await expect(reading).rejects.toMatchObject({ errno: 'EIO' });
}

export async function expectImage(session: Session, folder: string, image: string, loop: number): Promise<void> {
  const found = await session.content(loop);
  const recorded = loadImage(folder, image);
  if (sha256(found) === sha256(recorded)) return;
  const at = found.findIndex((byte, i) => byte !== recorded[i]);
  const hex = (content: Buffer) => content.subarray(at - (at % 16), at + 48).toString('hex');
  expect(hex(found), `${folder}/${image} from byte ${at - (at % 16)}`).toBe(hex(recorded));
}

export const deviceOf = ({ label }: { label: string }) => label.split('-')[0];

export const indexOfKeep = (steps: readonly Step[], image: string) =>
  steps.findIndex((step) => step.kind === 'keep' && step.image === image);

/** Disks as the kernel left them, `/dev/loop0` and on, and the first one as base-real. */
export async function attach(
  folder: string,
  images: readonly string[],
  wrap: (disk: BlockDevice) => BlockDevice = (disk) => disk,
): Promise<Session> {
  const session = new Session();
  for (const [i, image] of images.entries()) {
    const content = loadImage(folder, image);
    session.add(i, wrap(session.loop(i, content.length / SECTOR, content)));
  }
  const sectors = (await session.content(0)).length / SECTOR;
  await session.dmsetup(['create', 'base-real', '--table', `0 ${sectors} linear /dev/loop0 0`]);
  return session;
}

export const lineOf = async (session: Session, kind: 'table' | 'status', name: string) =>
  (await session.state()).find((line) => line.startsWith(`${kind} ${name}: `));
