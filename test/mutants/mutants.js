/**
 * Every guard that keeps a promise on what a write means, and the change that takes it away. `npm run mutants` makes each
 * change in a copy of the project and demands that the crash and property suites fail there.
 */
const store = 'src/stores/exception/persistent.ts';
const exceptions = 'src/targets/snapshot/exceptions.ts';
const origins = 'src/targets/snapshot/origins.ts';
const snapshot = 'src/targets/snapshot/snapshot-table.ts';

export const mutants = [
  {
    guard: 'data is durable before the area that names it',
    file: store,
    find: '    await writeLater();\n    await this.#cow.flush();\n    await this.#cow.write(this.#areaAt',
    replace: '    await writeLater();\n    await this.#cow.write(this.#areaAt',
  },
  {
    guard: 'the area is durable before a commit is acknowledged',
    file: store,
    find: 'first, 0, chunkBytes);\n    await this.#cow.flush();',
    replace: 'first, 0, chunkBytes);',
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
    file: exceptions,
    find: 'if (!this.store.valid) return this.#marked ? this.#reads.on(Math.floor(at / size), last) : this.#becomeInvalid();',
    replace: 'if (!this.store.valid) return undefined;',
  },
  {
    guard: 'an origin write waits until its copies are durable',
    file: exceptions,
    find: 'if (newChunk >= this.store.durableBelow && newChunk > upTo) upTo = newChunk;',
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
    file: exceptions,
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
    guard: 'a flush of a snapshot commits its exceptions',
    file: exceptions,
    find: 'if (this.store.valid && this.store.lastSettled >= this.store.durableBelow) return this.#flushAll();',
    replace: '',
  },
  {
    guard: 'a flush covers writes that completed during the commit',
    file: exceptions,
    find: "      throw this.#invalidError('flush');\n    }\n    await this.cow.flush();",
    replace: "      throw this.#invalidError('flush');\n    }",
  },
  {
    guard: 'writers of a chunk wait for its copy',
    file: exceptions,
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
];
