/**
 * Every guard that keeps a promise on what a write means, and the change that takes it away, in one place or, where a
 * second one would stand in for the first, in `edits`. `npm run mutants` makes each change in a copy of the project and
 * demands that the crash and property suites fail there, or the `suite` that the guard has.
 */
/** @typedef {{ file: string, find: string, replace: string }} Edit */

const store = 'src/stores/exception/persistent.ts';
const exceptions = 'src/targets/snapshot/exceptions.ts';
const image = 'src/targets/snapshot/image-io.ts';
const protection = 'src/targets/snapshot/protection.ts';
const origins = 'src/targets/snapshot/origins.ts';
const buffer = 'src/targets/snapshot/origin-buffer.ts';
const batch = 'src/targets/snapshot/copy-batch.ts';
const merge = 'src/targets/snapshot/merge.ts';
const merging = 'src/targets/snapshot/merging.ts';
const snapshot = 'src/targets/snapshot/snapshot-table.ts';
const images = 'src/services/fork/images.ts';
const merges = 'src/services/fork/merges.ts';
const engine = 'src/services/engine';
const pool = 'src/stores/thin/state.ts';
const thin = 'src/targets/thin/thin.ts';
const thins = 'test/unit/thin/crash';
const thinFailures = 'test/unit/thin/failures';
const thinTargets = 'test/unit/thin/targets';
/** merges.test.ts and merges-interrupted.test.ts */
const restarts = 'src/services/fork/merges';

/** @type {{ guard: string, file?: any, find?: any, replace?: any, edits?: Edit[], suite?: string }[]} */
const guards = [
  {
    guard: 'data is durable before the area that names it',
    file: store,
    find: '    await writeLater();\n    await this.#cow.flush();\n    // No more',
    replace: '    await writeLater();\n    // No more',
  },
  {
    guard: 'the area is durable before a commit is acknowledged',
    file: store,
    find: 'first, from, to - from);\n    await this.#cow.flush();',
    replace: 'first, from, to - from);',
  },
  {
    guard: 'an area that a batch fills is written to its end',
    file: store,
    find: 'const to = area === first ? ',
    replace: 'const to = filled > 0 ? ',
    suite: 'src/stores/exception/persistent.test.ts',
  },
  {
    guard: 'the next area is ended before this one becomes full',
    file: store,
    find: '    await writeLater();\n    await this.#cow.flush();',
    replace: '    if (filled > 0) await writeLater();\n    await this.#cow.flush();',
  },
  {
    guard: 'later areas are on disk before the list reaches them',
    file: store,
    find: '(area === first ? undefined : this.#cow.write(this.#areaAt(index), area, 0, chunkBytes));',
    replace: 'this.#cow.write(this.#areaAt(index), area, 0, chunkBytes);',
  },
  {
    guard: 'entries behind the end of the list are wiped before the next commit',
    file: store,
    find: 'if (this.#staleTail) {',
    replace: 'if (false as boolean) {',
  },
  {
    guard: 'a new store is empty before it has a header',
    file: store,
    find: '    await this.#cow.write(chunkBytes, new Uint8Array(chunkBytes), 0, chunkBytes);\n    await this.#cow.flush();\n    await this.#cow.write(bytes(0), headerOf(this.layout, true), 0, chunkBytes);',
    replace:
      '    await this.#cow.write(bytes(0), headerOf(this.layout, true), 0, chunkBytes);\n    await this.#cow.write(chunkBytes, new Uint8Array(chunkBytes), 0, chunkBytes);',
  },
  {
    guard: 'a reset wipes the header before the list',
    file: store,
    find: '    await this.#cow.write(bytes(0), new Uint8Array(SECTOR), 0, SECTOR);\n    await this.#cow.flush();\n',
    replace: '',
  },
  {
    guard: 'a reset waits for a batch under way',
    file: store,
    find: '    await this.#running;\n',
    replace: '',
  },
  {
    guard: 'a batch that found no space is repeated as it was',
    file: store,
    find: 'this.#write(this.#unfinished || ready)',
    replace: 'this.#write(ready)',
  },
  {
    guard: 'a chunk in use is not allocated again after a load',
    file: store,
    find: 'if (this.#nextFree <= newChunk) this.#nextFree = newChunk + 1;',
    replace: 'if (this.#nextFree < newChunk) this.#nextFree = newChunk;',
  },
  {
    guard: 'exceptions are committed in order of allocation',
    file: store,
    find: "while (end < this.#queue.length && this.#queue[end].state !== 'open') end++;",
    replace: 'end = this.#queue.length;',
  },
  {
    guard: 'the header says invalid, durably, before an origin write goes on',
    file: store,
    find: 'headerOf(this.layout, false), 0, this.layout.chunkBytes);\n      await this.#cow.flush();',
    replace: 'headerOf(this.layout, false), 0, this.layout.chunkBytes);',
  },
  {
    guard: 'an origin write waits for the invalid header',
    file: protection,
    find: 'if (!store.valid) return exceptions.marked ? this.#reads.on(first, last) : exceptions.becomeInvalid();',
    replace: 'if (!store.valid) return undefined;',
  },
  {
    guard: 'an origin write waits until its copies are durable',
    file: protection,
    find: 'if (newChunk >= store.durableBelow && newChunk > upTo) upTo = newChunk;',
    replace: '',
  },
  {
    guard: 'an origin write asks again after each wait',
    file: origins,
    find: 'for (let wait: Promise<void> | undefined = first; wait; wait = this.#protect(at, length)) await wait;',
    replace: 'await first;',
  },
  {
    guard: 'an origin write waits for copies under way',
    file: protection,
    find: '} else if (wait) old++;',
    replace: '} else if (wait) {\n        old++;\n        wait = undefined;\n      }',
  },
  {
    guard: 'an origin write waits for reads of the old data',
    file: 'src/targets/snapshot/tracked-reads.ts',
    find: 'if (this.#reads.size === 0) return undefined;',
    replace: 'if (this.#reads.size >= 0) return undefined;',
  },
  {
    guard: 'a resume waits for origin writes that nobody copied',
    file: snapshot,
    find: 'if (known < this.size && !this.merging) await this.origin.settled();',
    replace: '',
  },
  {
    guard: 'a resume waits for no origin writes that begin later',
    file: origins,
    find: '      this.#writers = new Writers();\n',
    replace: '',
  },
  {
    guard: 'a revert waits for origin writes that nobody copied',
    file: exceptions,
    find: '      await settled();\n',
    replace: '',
  },
  {
    guard: 'a batch of origin writes waits until its copies are durable',
    file: origins,
    find: '    for (let waits: Promise<void>[] | undefined; waits?.length !== 0; ) {',
    replace: '    for (let waits: Promise<void>[] | undefined = []; waits?.length !== 0; ) {',
  },
  {
    guard: 'a batch of origin writes waits until its copies are made',
    file: buffer,
    find: '    await this.#secure(runs, this.#allow);\n',
    replace: '',
  },
  {
    guard: 'a batch copies no chunk that somebody else copies',
    file: protection,
    find: 'store.lookup(old) < 0 && !this.#copies.has(old);',
    replace: 'store.lookup(old) < 0;',
  },
  {
    guard: 'a batch copies nothing for a snapshot that goes or is handed over',
    file: batch,
    find: '    alike = snapshots();\n',
    replace: '',
  },
  {
    guard: 'the memory of a batch of copies is used again when all have ended',
    file: batch,
    find: 'return every(waits).then(() => this.#ended());',
    replace: 'this.#ended();\n    return every(waits);',
  },
  {
    guard: 'a flush of an origin waits for what is in memory',
    file: origins,
    find: 'return this.#buffer.drained().then(() => this.device.flush());',
    replace: 'return this.device.flush();',
  },
  {
    guard: 'and for what was written while a batch was on its way',
    file: buffer,
    find: 'if (this.#active.count === 0) return this.#running;',
    replace: 'return this.#running;',
  },
  {
    guard: 'a read of an origin finds what is in memory',
    file: origins,
    find: 'if (this.#buffer.empty) return this.device.read(at, into, start, length);',
    replace: 'if (at >= 0) return this.device.read(at, into, start, length);',
  },
  {
    guard: 'and the newest of it',
    file: buffer,
    find: '    this.#draining.overlay(at, into, start, length);\n    this.#active.overlay(at, into, start, length);',
    replace: '    this.#active.overlay(at, into, start, length);\n    this.#draining.overlay(at, into, start, length);',
  },
  {
    guard: 'and what has left it while the disk was read',
    file: buffer,
    find: 'return wait.then(() => here.overlay(at, into, start, length));',
    replace: 'return wait.then(() => (here, this.#overlay(at, into, start, length)));',
  },
  {
    guard: 'an origin write over what is in memory comes behind it',
    file: origins,
    find: 'const behind = !buffer.empty && buffer.overlaps(at, length);',
    replace: 'const behind = false as boolean;',
  },
  {
    guard: 'zeroes over what is in memory come behind it',
    file: origins,
    find: 'if (this.#buffer.empty || !this.#buffer.overlaps(at, length)) return this.writeZeroes(at, length, mayUnmap);',
    replace: 'if (at >= 0) return this.writeZeroes(at, length, mayUnmap);',
  },
  {
    guard: 'suspending an origin brings what is in memory to the disk',
    file: 'src/targets/snapshot/origin.ts',
    find: 'postsuspend: () => origin.drain(),',
    replace: 'postsuspend: async () => {},',
  },
  {
    guard: 'a new snapshot has what was in memory',
    file: snapshot,
    find: 'const changes = this.merging ? !this.active : known < this.size;',
    replace: 'const changes = false as boolean;',
  },
  {
    guard: 'so has one that is reverted',
    edits: [
      { file: 'src/targets/snapshot/snapshot.ts', find: '    await this.origin.emptied();\n', replace: '' },
      { file: 'src/targets/snapshot/snapshot.ts', find: '    this.origin.reopen();\n', replace: '' },
    ],
  },
  {
    guard: 'a snapshot that goes has copies for what was in memory',
    file: snapshot,
    find: 'if (this.active) await this.origin.drain().catch(() => {});',
    replace: '',
  },
  {
    guard: 'nothing is kept in memory while a merge runs',
    file: origins,
    find: '    if (this.#members.some(isMerge)) return this.write(at, from, start, length);\n',
    replace: '    void isMerge;\n',
  },
  {
    guard: 'what the origin refused stays in memory',
    file: buffer,
    find: 'if (failed) throw this.#keep(failed);',
    replace: 'if (failed) throw failed.error;',
  },
  {
    guard: 'and is not written over what came later',
    file: buffer,
    find: '[...runs, ...this.#active.runs(RUN)]',
    replace: '[...this.#active.runs(RUN), ...runs]',
  },
  {
    guard: 'and nothing more is acknowledged from there until it is written',
    file: buffer,
    find: 'return this.#closers === 0 && !this.#failed;',
    replace: 'return this.#closers === 0;',
  },
  {
    guard: 'a flush of a snapshot commits its exceptions',
    file: exceptions,
    find: 'if (this.store.valid && this.store.lastSettled >= this.store.durableBelow) return this.#flushAll();',
    replace: '',
  },
  {
    guard: 'a flush covers writes that completed during the commit',
    file: exceptions,
    find: "      throw this.invalidError('flush');\n    }\n    await this.cow.flush();",
    replace: "      throw this.invalidError('flush');\n    }",
  },
  {
    guard: 'a flush covers what another thread has written',
    file: 'src/device/posix-device.ts',
    find: 'this.#aside--;\n        this.#flushes.wrote();',
    replace: 'this.#aside--;',
    suite: 'src/device/writer.test.ts',
  },
  {
    guard: 'writers of a chunk wait for its copy',
    file: image,
    find: 'const before = this.#copies.of(old) ?? (',
    replace: 'const before = undefined ?? (',
  },
  {
    guard: 'a partial write keeps the rest of the chunk',
    file: 'src/targets/snapshot/copies.ts',
    find: 'wait = this.#origin.read(bytes(old * size), own, 0, length);\n',
    replace: '',
  },
  {
    guard: 'suspending a snapshot makes its exceptions durable',
    file: snapshot,
    find: 'await this.exceptions?.drain();',
    replace: '',
  },
  {
    guard: 'other snapshots have their copies, durably, before a batch overwrites the origin',
    edits: [
      { file: merging, find: '    await this.#others(pieces);\n', replace: '' },
      { file: merging, find: 'this.#origin.write(bytes(part.to)', replace: 'this.#origin.device.write(bytes(part.to)' },
    ],
  },
  {
    guard: 'writes to a batch wait from before the others copy',
    edits: [
      {
        file: merging,
        find: '    for (const { oldChunk, count } of runs) for (let i = 0; i < count; i++) this.#window.add(oldChunk + i);\n',
        replace: '',
      },
      {
        file: merging,
        find: '    const failed = await this.#copy(pieces);\n',
        replace:
          '    for (const { oldChunk, count } of runs) for (let i = 0; i < count; i++) this.#window.add(oldChunk + i);\n    const failed = await this.#copy(pieces);\n',
      },
    ],
  },
  {
    guard: 'a write to a chunk of the batch waits',
    file: merge,
    find: 'const wait = merging.hold(first);',
    replace: 'const wait = undefined as Promise<void> | undefined;',
  },
  {
    guard: 'a write over the edge of the batch waits where it has to',
    file: merge,
    find: 'const alone = newChunk >= 0 && merging.busy;',
    replace: 'const alone = false as boolean;',
  },
  {
    guard: 'a write that waited asks again where to go',
    file: merge,
    find: 'if (wait) return wait.then(() => this.#put(at, from, start, count, mayUnmap));',
    replace:
      'if (wait) return wait.then(() => this.cow.write(bytes(newChunk * chunkBytes + at - first * chunkBytes), from!, start, count));',
  },
  {
    guard: 'writes under way on the COW device end before their batch is copied',
    file: merging,
    find: '    await every(runs.map(({ oldChunk, count }) => this.#writes.on(oldChunk, oldChunk + count - 1)).filter(isPromise));\n',
    replace: '    void isPromise;\n',
  },
  {
    guard: 'a buffer is used again when the writes from it have ended',
    file: merging,
    find: "      // The buffer is the origin's until then.\n      await every(waits);",
    replace: "      // The buffer is the origin's until then.\n      void waits;",
  },
  {
    guard: 'the origin is flushed before its exceptions leave the list',
    file: merging,
    find: '      await this.#origin.device.flush();\n',
    replace: '',
  },
  {
    guard: 'a chunk that could not be copied keeps its exception',
    file: merging,
    find: 'runs.slice(0, failed?.run)',
    replace: 'runs',
  },
  {
    guard: 'the list is cut, durably, before the writes that wait go to the origin',
    file: store,
    find: '    await this.#cow.flush();\n    for (let n = this.#length - 1; n >= length; n--) this.#completed.delete(this.#entry(n).oldChunk);',
    replace: '    for (let n = this.#length - 1; n >= length; n--) this.#completed.delete(this.#entry(n).oldChunk);',
  },
  {
    guard: 'a chunk leaves the map when it has left the list',
    edits: [
      {
        file: store,
        find: '    for (let n = this.#length - 1; n >= length; n--) this.#completed.delete(this.#entry(n).oldChunk);\n',
        replace: '',
      },
      {
        file: store,
        find: '    area.fill(0, filled * diskException.size);\n',
        replace:
          '    for (let n = this.#length - 1; n >= length; n--) this.#completed.delete(this.#entry(n).oldChunk);\n    area.fill(0, filled * diskException.size);\n',
      },
    ],
  },
  {
    guard: 'areas that a batch emptied are zeroed on the disk',
    file: store,
    find: '    for (let i = this.#areaIndex; i > index; i--) await this.#cow.write(this.#areaAt(i), empty, 0, chunkBytes);\n',
    replace: '    void empty;\n',
  },
  {
    guard: 'a list that could not be cut is cut before anything else happens to its chunks',
    file: merging,
    find: '    if (this.#unfinished === 0) this.#window.clear();',
    replace: '    this.#window.clear();',
  },
  {
    guard: 'a list that could not be cut is cut before another table takes over',
    file: merging,
    find: '    if (this.#unfinished > 0) await this.#remove(this.#unfinished);\n    this.#release();',
    replace: '    this.#release();',
  },
  {
    guard: 'a suspend waits for the batch under way',
    file: merge,
    find: '  override async postsuspend(): Promise<void> {\n    await this.#merging?.stopped();\n',
    replace: '  override async postsuspend(): Promise<void> {\n',
  },
  {
    guard: 'writes to a merging device copy for the other snapshots',
    file: merge,
    find: 'return from ? this.origin.write(to, from, start, count) : this.origin.writeZeroes(to, count, mayUnmap);\n    }\n    const merging',
    replace:
      'return from ? this.origin.device.write(to, from, start, count) : this.origin.device.writeZeroes(to, count, mayUnmap);\n    }\n    const merging',
  },
  {
    guard: 'a flush of a merging device reaches the origin',
    file: merge,
    find: 'for (const device of [this.origin.device, this.cow])',
    replace: 'for (const device of [this.cow])',
  },
  {
    guard: 'a flush of a merging device reaches the COW device',
    file: merge,
    find: 'for (const device of [this.origin.device, this.cow])',
    replace: 'for (const device of [this.origin.device])',
  },
  {
    guard: 'a merge takes over only what is durable',
    file: 'src/targets/snapshot/snapshot-table.ts',
    find: '        await exceptions.drain();\n',
    replace: '',
  },
  {
    guard: 'a snapshot that takes over from a merge allocates behind all that is in use',
    file: 'src/targets/snapshot/snapshot-table.ts',
    find: 'if (source.merging && exceptions?.store instanceof PersistentStore) exceptions.store.resumeAllocating();',
    replace: '',
  },
  {
    guard: 'chunks given up before a merge do not pass for exceptions that are durable',
    edits: [
      { file: store, find: '    this.#forgetGivenUp();\n    // The status', replace: '    // The status' },
      { file: store, find: '    this.#forgetGivenUp();\n    this.#before', replace: '    this.#before' },
    ],
  },
  {
    guard: 'it is saved that a fork is merged before its exceptions are handed over',
    file: merges,
    find: '        await images.save();\n        await this.#handOver(',
    replace: '        await this.#handOver(',
    suite: restarts,
  },
  {
    guard: 'what is saved from then on is the merge',
    file: images,
    find: '      if (intended) Object.assign(saved, { table: [intended], suspended: false });\n',
    replace: '',
    suite: restarts,
  },
  {
    guard: 'and no fork over the same store',
    file: images,
    find: '      if (this.#leaving.has(device)) continue;\n',
    replace: '',
    suite: restarts,
  },
  {
    guard: 'after a restart a merge waits until every snapshot of its origin is back',
    file: 'src/mapper/saved-device.ts',
    find: '    if (isLate(device)) late.add(device);\n',
    replace: '',
    suite: restarts,
  },
  {
    guard: 'and does not begin when one cannot be loaded',
    file: 'src/mapper/restore.ts',
    find: '      checkSeen(saved, index, types);\n',
    replace: '',
    suite: restarts,
  },
  {
    guard: 'the COW file of a merge is deleted when no restart looks for it',
    file: merges,
    find: '      // The COW file may go only when no restart looks for it.\n      await this.#images.save();\n',
    replace: '',
    suite: restarts,
  },
  {
    guard: 'a merge has ended when its store is empty, whatever table the origin has',
    file: merges,
    find: "typeOf(device) === 'snapshot-origin' && (await isEmpty(this.#images.mapper, record))",
    replace: "typeOf(device) === 'snapshot-origin'",
    suite: restarts,
  },
  {
    guard: 'the origin device stays while a merge runs on it',
    file: images,
    find: '    if (this.mergingInto(image)) return undefined;\n',
    replace: '',
    suite: restarts,
  },
  {
    guard: 'what moves to another thread is saved as it was until it has arrived',
    file: 'src/services/engine/moves.ts',
    find: '    this.#under.add(part);\n    for (const device',
    replace: '    for (const device',
    suite: engine,
  },
  {
    guard: 'a file that could not be opened again does not move',
    file: 'src/mapper/bound.ts',
    find: '!(await disks.isFound(disk))',
    replace: 'false',
    suite: engine,
  },
  {
    guard: 'a removal is told with the records of its moment',
    file: 'src/services/engine/remote-engine.ts',
    find: '        this.#state = told;\n        claims.hide',
    replace: '        claims.hide',
    suite: engine,
  },
  {
    guard: 'what is told while the devices are being closed is not saved',
    file: 'src/services/daemon/daemon.ts',
    find: '    if (this.#sealed) throw stops();\n    return state;',
    replace: '    return state;',
    suite: 'src/services/daemon/daemon.test.ts',
  },
  {
    guard: 'nor after the next daemon may start',
    file: 'src/services/daemon/daemon.ts',
    find: '    await this.#file.idle();\n',
    replace: '',
    suite: 'src/services/daemon/daemon.test.ts',
  },
  {
    guard: 'a call that outlasts the devices has not succeeded',
    file: 'src/services/daemon/daemon.ts',
    find: '        if (this.#sealed) throw stops();\n        return result;',
    replace: '        return result;',
    suite: 'src/services/daemon/daemon.test.ts',
  },
  {
    guard: 'a device is saved as suspended when somebody is to resume it only',
    file: 'src/mapper/saved-device.ts',
    find: 'suspended: device.staysSuspended,',
    replace: 'suspended: device.suspended,',
    suite: 'src/mapper/restart.test.ts',
  },
  {
    guard: 'the data device is flushed before mappings become durable',
    file: pool,
    find: 'await every([flushed(this.#options.flushData), flushed(this.#flush)]);',
    replace: 'await flushed(this.#flush);',
    suite: thins,
  },
  {
    guard: 'metadata is durable before the superblock that leads to it',
    file: pool,
    find: 'await every([flushed(this.#options.flushData), flushed(this.#flush)]);',
    replace: 'await flushed(this.#options.flushData);',
    suite: thins,
  },
  {
    guard: 'the superblock is durable before a commit is acknowledged',
    file: pool,
    find: '    await this.blocks.writeOne(superblock);\n    await flushed(this.#flush);\n  }\n\n  readonly',
    replace: '    await this.blocks.writeOne(superblock);\n  }\n\n  readonly',
    suite: thins,
  },
  {
    guard: 'a block that is freed is given out after the next commit only',
    file: 'src/stores/pdata/space-map.ts',
    find: 'return block >= this.old.nrBlocks || this.#few(this.oldBitmap(Math.floor(block / ENTRIES)), block) === 0',
    replace: 'return true',
    suite: thins,
  },
  {
    guard: 'what was committed is not changed in place',
    file: 'src/stores/pdata/transaction.ts',
    find: '    this.#shadows.clear();\n',
    replace: '',
    suite: thins,
  },
  {
    guard: 'metadata is not changed while a commit writes it',
    file: 'src/lib/turns.ts',
    find: 'this.#last ? this.#last.then(work) : work()',
    replace: 'work()',
    suite: thinFailures,
  },
  {
    guard: 'nothing is changed after a commit that failed on the way',
    file: pool,
    find: '      this.failure = error;\n      throw error;\n    }\n    if (this.#flagWaits)',
    replace: '      throw error;\n    }\n    if (this.#flagWaits)',
    suite: thinFailures,
  },
  {
    guard: 'a data device that failed to flush is not asked again',
    file: pool,
    find: '      // A flush may say nothing the next time, and what was written is not there.\n      this.failure = error;\n',
    replace: '      if (superblock) this.failure = error;\n',
    suite: thinFailures,
  },
  {
    guard: 'a change of metadata that fails leaves no trace',
    file: 'src/stores/pdata/blocks.ts',
    find: '      this.#putBack();\n',
    replace: '',
    suite: thinFailures,
  },
  {
    guard: 'a deletion that failed half-way is not committed',
    file: 'src/stores/thin/changes.ts',
    find: '        // Whatever it was, it is not as if nothing had been done.\n        this.#state.failure = error;\n        this.#state.checkWhole();\n',
    replace: '        throw error;\n',
    suite: 'test/unit/thin/long',
  },
  {
    guard: 'a flush of a thin device commits what it got',
    file: thin,
    find: 'if (this.pool.isUncommitted(this.id)) return this.pool.commit().then(() => this.#checkLost());',
    replace: '',
    suite: thins,
  },
  {
    guard: 'a flush that comes behind a commit that fails hears of it',
    file: thin,
    find: 'return this.pool.commit().then(() => this.#checkLost());',
    replace: 'return this.pool.commit();',
    suite: 'test/unit/thin/io',
  },
  {
    guard: 'a block is not let go of while somebody reads it',
    file: 'src/targets/thin/provisioning.ts',
    find: '    if (part.old) wait = wait ? wait.then(() => sharedReads.ended()) : sharedReads.ended();\n',
    replace: '',
    suite: thinTargets,
  },
  {
    guard: 'what was shared is discarded below after a commit only',
    file: 'src/targets/thin/discards.ts',
    find: '  if (shared) await pool.commitLocked();\n',
    replace: '',
    suite: thins,
  },
  {
    guard: 'two writers of a block get one',
    file: 'src/targets/thin/traffic.ts',
    find: '        if (busy) return busy;\n',
    replace: '',
    suite: thinTargets,
  },
  {
    guard: 'who lost something in a failure of the pool hears of it',
    file: 'src/targets/thin/pool.ts',
    find: '    for (const member of this.members) if (this.#uncommitted.has(member.id)) member.lose();\n',
    replace: '',
    suite: 'test/unit/thin/space',
  },
  {
    guard: 'who flushes behind a commit that fails hears of it too',
    file: thin,
    find: '.then(() => this.#checkLost())',
    replace: '',
    suite: 'test/unit/thin/space',
  },
  {
    guard: 'a flush flushes the data device where there is nothing to commit',
    file: 'src/targets/thin/pool.ts',
    find: 'return void (await this.data.flush());',
    replace: 'return;',
    suite: 'test/unit/thin/space',
  },
  {
    guard: 'what metadata is restored over is no pool before it is overwritten',
    file: 'src/stores/thin/restore.ts',
    find: '  await device.flush();\n  const restore = new Restore(',
    replace: '  const restore = new Restore(',
    suite: 'test/unit/thin/crash-restore',
  },
  {
    guard: 'the table of a pool that grows is saved before its metadata tells of more',
    file: 'src/services/pool/growth.ts',
    find: '        await images.save();\n        await mapper.load({ name }, [table]);',
    replace: '        await mapper.load({ name }, [table]);',
    suite: 'src/services/pool/pools.test.ts',
  },
  {
    guard: 'restored metadata is durable before its superblock',
    file: 'src/stores/thin/restore.ts',
    find: '  await device.flush();\n  await device.write(bytes(0), superblock,',
    replace: '  await device.write(bytes(0), superblock,',
    suite: 'test/unit/thin/crash-restore',
  },
];

/** @type {{ guard: string, edits: Edit[], suite?: string }[]} */
export const mutants = guards.map(({ guard, edits, suite, ...edit }) => ({
  guard,
  suite,
  edits: edits ?? [/** @type {Edit} */ (edit)],
}));
