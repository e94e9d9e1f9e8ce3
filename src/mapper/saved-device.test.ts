import { expect, test } from 'vitest';
import { inLoadOrder, type SavedDevice } from './saved-device.ts';

const saved = (minor: number, type: string, args: string): SavedDevice => ({
  name: `dev${minor}`,
  uuid: '',
  minor,
  table: [{ start: 0, length: 8, type, args }],
  readOnly: false,
  suspended: false,
  deferredRemove: false,
  eventNumber: 0,
  readAheadMinimum: false,
});

const order = (devices: SavedDevice[]) =>
  inLoadOrder(devices, 254, ({ table }) => table?.[0].type === 'snapshot-merge').map(({ minor }) => minor);

test('a device is loaded after those below it', () => {
  expect(order([saved(0, 'linear', '254:1 0'), saved(1, 'linear', '254:2 0'), saved(2, 'zero', '')])).toEqual([
    2, 1, 0,
  ]);
});

test('what writes by itself is loaded last, with what lies above it, as others may have to see its writes', () => {
  expect(
    order([
      saved(0, 'linear', '254:1 0'),
      saved(1, 'snapshot-merge', '/image /a.cow P 8'),
      saved(2, 'snapshot', '/image 254:3 P 8'),
      saved(3, 'linear', '/b.cow 0'),
    ]),
  ).toEqual([3, 2, 1, 0]);
});
