/** `snapshot <origin> <COW device> <P|PO|N> <chunk sectors> [<#features> <feature>…]` (Linux `dm-snap.c`). */
import type { ChangedExtent, Extent, Maybe } from '../../device/block-device.ts';
import { Parts } from '../../lib/parts.ts';
import type { Bytes } from '../../units.ts';
import type { Target, TargetType } from '../target.ts';
import { readArguments } from './arguments.ts';
import { SnapshotTable } from './snapshot-table.ts';

export const snapshot: TargetType = {
  name: 'snapshot',
  version: [1, 16, 0],
  volatile: (args) =>
    args[2]?.[0]?.toUpperCase() === 'N' ? 'a transient snapshot (N) ends with the program that served it' : undefined,
  create: async (line) => new Snapshot(snapshot, line, await readArguments('snapshot', line, 'r')).open(),
};

class Snapshot extends SnapshotTable implements Target {
  readonly merging = false;

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.live().io.read(at + this.shift, into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.live().io.write(at + this.shift, from, start, length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    return this.live().io.writeZeroes(at + this.shift, length, mayUnmap);
  }

  discard(at: Bytes, length: number): Maybe {
    const { io } = this.live();
    if (!this.features.passDown) return io.discard(at + this.shift, length);
    const parts = new Parts();
    parts.try(() => io.discard(at + this.shift, length));
    parts.try(() => io.passDown(at + this.shift, length));
    return parts.done();
  }

  /** Works on an invalid snapshot too; never reaches the origin. */
  flush(): Maybe {
    // An invalid snapshot has nothing left to make durable: it must not keep its device from getting another table.
    if (this.suspending && !this.valid) return;
    return this.exceptions ? this.exceptions.flush() : this.cow.flush();
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    return this.live().io.extents(at + this.shift, length);
  }

  changed(at: Bytes, length: number): Maybe<ChangedExtent[]> {
    const { io } = this.live();
    if (this.origin.isDrained) return io.changed(at + this.shift, length);
    return this.origin.drain().then(() => io.changed(at + this.shift, length));
  }

  async revert(): Promise<void> {
    const exceptions = this.live();
    await this.origin.emptied();
    const reset = exceptions.reset(() => this.origin.settled());
    this.origin.reopen();
    await reset;
  }
}
