/** Nodes, bitmaps and space maps after any changes: equal to arrays and maps that do the same. */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { blockData } from '../../../src/formats/pdata/block.ts';
import * as node from '../../../src/formats/pdata/node.ts';
import { count, ENTRIES, findFree, MANY, setCount } from '../../../src/formats/pdata/space-map.ts';
import { prng } from '../../../src/lib/prng.ts';
import { Blocks } from '../../../src/stores/pdata/blocks.ts';
import { Btree } from '../../../src/stores/pdata/btree.ts';
import { DataSpaceMap } from '../../../src/stores/pdata/data-space-map.ts';
import { MetadataSpaceMap } from '../../../src/stores/pdata/metadata-space-map.ts';
import { Transaction } from '../../../src/stores/pdata/transaction.ts';

const SEEDS = [1, 2, 3, 4];

const bytesOf = (value: number, size: number): Uint8Array =>
  Uint8Array.from({ length: size }, (_, i) => (value * 31 + i) % 256);

test.each([4, 8, 16, 24])('a node with values of %i bytes holds what an array holds', (size) => {
  const random = prng(size);
  const block = blockData();
  node.format(block, true, size);
  const model: { key: number; value: Uint8Array }[] = [];
  for (let step = 0; step < 3000; step++) {
    const key = random.below(600) * 2 ** 32 + random.below(3);
    const at = model.findIndex((entry) => entry.key >= key);
    const i = at < 0 ? model.length : at;
    expect(node.upper(block, key)).toBe(i);
    if (model[i]?.key === key) {
      node.deleteAt(block, i);
      model.splice(i, 1);
    } else if (model.length < node.max(block)) {
      const value = bytesOf(step, size);
      node.insertAt(block, i, key, value);
      model.splice(i, 0, { key, value });
    }
  }
  expect(node.nr(block)).toBe(model.length);
  for (const [i, { key, value }] of model.entries()) {
    expect(node.key(block, i)).toBe(key);
    expect(block.bytes.subarray(node.valueAt(block, i), node.valueAt(block, i) + size)).toEqual(value);
    expect(node.lower(block, key)).toBe(i);
  }
});

test('a bitmap counts as an array does, and finds what is free', () => {
  const random = prng(1);
  const block = blockData();
  const model = new Uint8Array(ENTRIES);
  for (let step = 0; step < 60_000; step++) {
    const i = random.below(ENTRIES);
    const value = random.pick([0, 1, 1, 2, MANY]);
    setCount(block, i, value);
    model[i] = value;
  }
  for (let i = 0; i < ENTRIES; i++) expect(count(block, i)).toBe(model[i]);
  for (let step = 0; step < 1000; step++) {
    const begin = random.below(ENTRIES);
    const end = begin + random.below(20);
    const free = model.subarray(0, Math.min(end, ENTRIES)).indexOf(0, begin);
    expect(findFree(block, begin, Math.min(end, ENTRIES))).toBe(free);
  }
});

function maps(blocks: number) {
  const metadata = new Blocks(new MemoryDevice(4 * 2 ** 20));
  const transaction = new Transaction(metadata);
  const own = new MetadataSpaceMap(transaction);
  const data = new DataSpaceMap(transaction);
  metadata.run(() => {
    own.make(0, 1024);
    own.commit();
    own.committed();
    data.make();
    data.extend(blocks);
    data.commit();
    own.commit();
    own.committed();
    data.committed();
  });
  return { metadata, transaction, own, data };
}

test.each(SEEDS)('a space map counts as a map does, also above three (seed %i)', (seed) => {
  const random = prng(seed);
  const size = 3 * ENTRIES - 5;
  const { metadata, transaction, own, data } = maps(size);
  const model = new Map<number, number>();
  const commit = () => {
    metadata.run(() => {
      data.commit();
      own.commit();
      own.committed();
      data.committed();
    });
    transaction.committed();
  };
  /** Owned at the last commit. */
  let ownedBefore = new Set<number>();
  for (let step = 0; step < 4000; step++) {
    const block = random.pick([0, 1, 17, 90, ENTRIES - 1, ENTRIES, 2 * ENTRIES + 3, size - 1]);
    const before = model.get(block) ?? 0;
    const kind = random.below(40);
    if (kind < 20) {
      metadata.run(() => data.inc(block, block + 1));
      model.set(block, before + 1);
    } else if (kind < 38) {
      const dec = () => metadata.run(() => data.dec(block, block + 1));
      if (before === 0) expect(dec).toThrow('is freed and has no owner');
      else {
        dec();
        model.set(block, before - 1);
      }
    } else if (kind === 38) {
      const fresh = metadata.run(() => data.newBlock()) as number;
      expect(model.get(fresh) ?? 0).toBe(0);
      expect(ownedBefore.has(fresh)).toBe(false);
      model.set(fresh, 1);
    } else {
      commit();
      ownedBefore = new Set([...model.keys()].filter((owned) => model.get(owned)! > 0));
    }
  }
  commit();
  for (const [block, expected] of model) expect(metadata.run(() => data.count(block))).toBe(expected);
  expect(data.root.nrAllocated).toBe([...model.values()].filter((owners) => owners > 0).length);
  expect(data.nrFree).toBe(size - data.root.nrAllocated);
});

test.each(SEEDS)('a tree holds what a map holds, with all nodes a third full (seed %i)', (seed) => {
  const random = prng(seed);
  const { metadata, transaction, own } = maps(10);
  const tree = new Btree(transaction, 1, { size: 8 });
  let root = metadata.run(() => tree.empty()) as number;
  const allocated = own.root.nrAllocated;
  const model = new Map<number, number>();
  const value = new Uint8Array(8);
  for (const [count, inserts] of [
    [4000, 9],
    [4000, 2],
    [3000, 7],
  ])
    for (let step = 0; step < count; step++) {
      const key = random.below(5000);
      metadata.run(() => {
        if (random.below(10) < inserts) {
          new DataView(value.buffer).setUint32(0, step, true);
          root = tree.insert(root, [key], value);
          expect(tree.inserted).toBe(!model.has(key));
          model.set(key, step);
        } else if (model.delete(key)) root = tree.remove(root, key);
      });
    }
  const found: number[] = [];
  metadata.run(() => {
    for (let key = 0; tree.next(root, key); key = found.at(-1)! + 1) {
      found.push(node.key(tree.leaf, tree.index));
      expect(tree.leaf.view.getUint32(tree.valueAt, true)).toBe(model.get(found.at(-1)!));
    }
    expect(found).toEqual([...model.keys()].sort((a, b) => a - b));
    expect(tree.highest(root)).toBe(found.at(-1));
    for (let key = 0; key < 5000; key += 3) expect(tree.find(root, key)).toBe(model.has(key));
    expect(depths(root, true).size).toBe(1);
  });
  metadata.run(() => {
    for (const key of model.keys()) root = tree.remove(root, key);
  });
  metadata.run(() => {
    expect(tree.next(root, 0)).toBe(false);
    expect(node.isLeaf(transaction.get(root, node.NODE))).toBe(true);
    tree.delete(root);
  });
  expect(own.root.nrAllocated).toBe(allocated - 1);

  function depths(number: number, isRoot = false): Set<number> {
    const block = transaction.get(number, node.NODE);
    if (!isRoot) expect(node.nr(block)).toBeGreaterThanOrEqual(node.max(block) / 3);
    if (node.isLeaf(block)) return new Set([0]);
    const below = Array.from({ length: node.nr(block) }, (_, i) => [...depths(node.child(block, i))]).flat();
    return new Set(below.map((depth) => depth + 1));
  }
});
