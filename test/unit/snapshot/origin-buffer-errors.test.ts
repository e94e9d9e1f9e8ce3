/** Origin writes that were acknowledged from memory, and that the disk then refuses. */
import { beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { OriginBuffer } from '../../../src/targets/snapshot/origin-buffer.ts';
import { bytes } from '../../../src/units.ts';
import { old, originData, rigWith, snapshotData, turns } from '../../support/rig.ts';

const EIO = { errno: 'EIO' };

beforeEach(() => {
  OriginBuffer.pages = 16;
  onTestFinished(() => void (OriginBuffer.pages = 0));
});

describe('an origin that cannot be written', () => {
  const failing = (sector: number) => (operation: string, at: number, count: number) =>
    operation === 'write' && at <= sector && sector < at + count ? 'EIO' : undefined;

  test('fails every flush until it can, and is read as it was acknowledged', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.touch([10, 20], 8);
    origin.fault = failing(80);
    for (let i = 0; i < 2; i++) await expect(rig.flush('origin')).rejects.toMatchObject(EIO);
    expect(await rig.read('origin', 80, 1)).toEqual(originData(80, 1));
    expect(rig.peek(origin, 160, 1)).toEqual(originData(160, 1));
    origin.fault = undefined;
    await rig.flush('origin');
    expect(rig.peek(origin, 80, 1)).toEqual(originData(80, 1));
    expect(await rig.read('snap', 0, 240)).toEqual(old(0, 240));
  });

  test('acknowledges nothing from memory any more', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.touch([10], 8);
    origin.fault = failing(80);
    await expect(rig.flush('origin')).rejects.toMatchObject(EIO);
    await rig.write('origin', 160, originData(160, 8));
    expect(rig.peek(origin, 160, 8)).toEqual(originData(160, 8));
    // Behind what is stuck.
    await expect(rig.write('origin', 82, originData(82, 1))).rejects.toMatchObject(EIO);
    origin.fault = undefined;
    await rig.write('origin', 82, originData(82, 1));
    rig.log.length = 0;
    await rig.flush('origin');
    await rig.touch([40], 8);
    expect(rig.log).toEqual(['1:0 F']);
    expect(rig.peek(origin, 80, 3)).toEqual(Buffer.concat([originData(80, 1), old(81, 1), originData(82, 1)]));
  });

  test('gets the newest of what was written meanwhile', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    origin.hold = (operation) => operation === 'write';
    origin.fault = failing(80);
    const flushed = rig.flush('origin');
    await origin.held(1);
    await rig.write('origin', 82, snapshotData(82, 2));
    await rig.write('origin', 160, snapshotData(160, 8));
    origin.go();
    await expect(flushed).rejects.toMatchObject(EIO);
    const expected = Buffer.concat([originData(80, 2), snapshotData(82, 2), originData(84, 4)]);
    expect(await rig.read('origin', 80, 8)).toEqual(expected);
    origin.fault = undefined;
    await rig.flush('origin');
    expect(rig.peek(origin, 80, 8)).toEqual(expected);
    expect(rig.peek(origin, 160, 8)).toEqual(snapshotData(160, 8));
  });

  test('is tried again a second later', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    onTestFinished(() => void vi.useRealTimers());
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.touch([10], 8);
    origin.fault = failing(80);
    await vi.advanceTimersByTimeAsync(1000);
    await turns();
    origin.fault = undefined;
    await vi.advanceTimersByTimeAsync(1000);
    await turns();
    expect(rig.peek(origin, 80, 1)).toEqual(originData(80, 1));
  });

  test('lets no snapshot be taken of what it does not hold', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.touch([10], 8);
    origin.fault = failing(80);
    rig.disk(2, 1024);
    const late = rig.create('late', '0 4096 snapshot /dev/ram0 /dev/ram2 P 8');
    await expect(late).rejects.toMatchObject(EIO);
    await expect(rig.mapper.revert({ name: 'snap' })).rejects.toMatchObject(EIO);
    origin.fault = undefined;
    await rig.mapper.revert({ name: 'snap' });
    expect(await rig.read('snap', 80, 1)).toEqual(originData(80, 1));
  });

  test('goes with what it could not be given, when nobody has it open any more', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.touch([10], 8);
    origin.fault = failing(80);
    await expect(rig.remove('origin')).rejects.toMatchObject(EIO);
    origin.fault = undefined;
    await rig.create('again', '0 4096 snapshot-origin /dev/ram0');
    expect(await rig.read('again', 80, 1)).toEqual(old(80, 1));
    await rig.touch([20], 8, 'again');
    rig.log.length = 0;
    expect(await rig.read('again', 160, 1)).toEqual(originData(160, 1));
    expect(rig.log).toEqual([]);
  });
});

test("what a disk refused is not given to it once more when its last user goes: it may be somebody else's by then", async () => {
  const disk = new MemoryDevice(bytes(65536));
  const { write } = disk;
  disk.write = async () => Promise.reject(new Error('full'));
  const buffer = new OriginBuffer(disk, async () => {});
  buffer.put(0, originData(0, 8), 0, 4096);
  await expect(buffer.drained()).rejects.toThrow('full');
  const repaired = vi.fn(write.bind(disk));
  disk.write = repaired;
  await buffer.abandon();
  expect(buffer.empty).toBe(true);
  expect(repaired).not.toHaveBeenCalled();
});
