import type { Bytes } from '../units.ts';
import { toBytes } from '../units.ts';
import { deviceWord, openArgument, parseSector, refuse, tableMode } from './arguments.ts';
import type { TargetType } from './target.ts';

/** `linear <device> <start sector>`: a stretch of another device (Linux `dm-linear.c`). */
export const linear: TargetType = {
  name: 'linear',
  version: [1, 4, 0],
  async create(line) {
    if (line.args.length !== 2) throw refuse('linear', 'Invalid argument count');
    const start = parseSector(line.args[1]);
    if (start === undefined) throw refuse('linear', 'Invalid device sector');
    const device = await openArgument(line, 'linear', line.args[0], tableMode(line));
    const shift = toBytes(start);
    const below = (at: Bytes) => (at + shift) as Bytes;
    return {
      ranges: [{ device, start, length: line.length }],
      get canDiscard() {
        return device.canDiscard;
      },
      read: (at, into, from, length) => device.read(below(at), into, from, length),
      write: (at, data, from, length) => device.write(below(at), data, from, length),
      flush: () => device.flush(),
      discard: (at, length) => device.discard(below(at), length),
      writeZeroes: (at, length, mayUnmap) => device.writeZeroes(below(at), length, mayUnmap),
      extents: (at, length) => device.extents(below(at), length),
      status(kind) {
        if (kind === 'table') return `${deviceWord(device)} ${start}`;
        if (kind === 'info') return '';
        return `target_name=linear,target_version=1.4.0,device_name=${deviceWord(device)},start=${start};`;
      },
      close: async () => {},
    };
  },
};
