import type { Bytes } from '../../units.ts';
import { toBytes } from '../../units.ts';
import { deviceWord, openArgument, refuse, tableMode } from '../arguments.ts';
import type { TargetType } from '../target.ts';
import { originOf } from './origins.ts';

const TYPE = 'snapshot-origin';

/** `snapshot-origin <origin>`: writes copy what they destroy into every snapshot first (Linux `dm-snap.c`, `origin_map`). */
export const snapshotOrigin: TargetType = {
  name: TYPE,
  version: [1, 9, 0],
  async create(line) {
    if (line.args.length !== 1) throw refuse(TYPE, 'incorrect number of arguments');
    const device = await openArgument(line, TYPE, line.args[0], tableMode(line), 'Cannot get target device');
    const origin = originOf(device);
    origin.open();
    // As in the kernel, sector s of the mapped device is sector s of the origin, wherever the target starts.
    const shift = toBytes(line.start);
    const below = (at: Bytes) => (at + shift) as Bytes;
    return {
      ranges: [{ device, start: line.start, length: line.length }],
      canDiscard: false,
      read: (at, into, start, length) => origin.read(below(at), into, start, length),
      write: (at, from, start, length) => origin.writeBehind(below(at), from, start, length),
      flush: () => origin.flush(),
      discard: () => {
        throw refuse(TYPE, 'discard is not supported');
      },
      writeZeroes: (at, length, mayUnmap) => origin.writeZeroesBehind(below(at), length, mayUnmap),
      extents: (at, length) => origin.extents(below(at), length),
      status: (kind) => {
        if (kind === 'info') return '';
        if (kind === 'table') return deviceWord(device);
        return `target_name=snapshot-origin,target_version=1.9.0,device_name=${deviceWord(device)};`;
      },
      postsuspend: () => origin.drain(),
      close: () => origin.close(),
    };
  },
};
