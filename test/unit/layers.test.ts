/** Imports point to lower layers only, so that a part can be read, tested and replaced without those above it. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { expect, test } from 'vitest';

const SOURCE = join(import.meta.dirname, '../../src');

const LAYERS = ['lib', 'formats', 'device', 'stores', 'targets', 'mapper', 'lvm', 'services', 'api', 'cli'];
const NUMBER = new Map(LAYERS.map((name, index) => [name, index]));
/** Files directly in `src` that everyone may import. */
const GROUND = new Set(['units.ts', 'errors.ts']);
/** Also a face on the api, beside cli. */
NUMBER.set('console', LAYERS.length - 1);
/** What tests are made of reaches up to the mapper. */
NUMBER.set('testing', NUMBER.get('mapper')! + 0.5);

/** Targets of one layer that must not know each other. */
const NEIGHBOURS = ['targets/snapshot', 'targets/thin'];

interface Import {
  from: string;
  to: string;
}

/** Why an import within `src` may not be, or undefined. Paths are relative to `src`. */
function wrong({ from, to }: Import): string | undefined {
  const [own, other] = [layerOf(from), layerOf(to)];
  if (other > own) return `${from} imports ${to}, which lies above it`;
  // The command knows the api, and what everyone may know.
  if (from.startsWith('cli/') && !/^(cli|api|lib)\//.test(to) && other > 0)
    return `${from} imports ${to}, past the api`;
  for (const folder of NEIGHBOURS)
    for (const neighbour of NEIGHBOURS)
      if (folder !== neighbour && from.startsWith(`${folder}/`) && to.startsWith(`${neighbour}/`))
        return `${from} imports ${to}, its neighbour`;
}

function layerOf(path: string): number {
  if (GROUND.has(path)) return 0;
  const layer = NUMBER.get(path.split('/')[0]);
  if (layer === undefined) throw new Error(`${path} lies in no layer`);
  return layer;
}

/** Tests beside a module may use what they test with. */
const isTest = (path: string) => path.endsWith('.test.ts');

function importsOf(path: string): Import[] {
  const text = readFileSync(join(SOURCE, path), 'utf8');
  const specifiers = [
    ...text.matchAll(/^\s*(?:import|export)\b[^'";]*?['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/gm),
  ];
  return specifiers
    .map((match) => match[1] ?? match[2])
    .filter((specifier) => specifier.startsWith('.'))
    .map((specifier) => ({ from: path, to: normalize(join(dirname(path), specifier)) }));
}

const files = readdirSync(SOURCE, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
  .map((entry) => relative(SOURCE, join(entry.parentPath, entry.name)))
  .filter((path) => !isTest(path));

test('no import points upward, past the api, or to a neighbour', () => {
  const imports = files.flatMap(importsOf).filter(({ to }) => !to.startsWith('..'));
  expect(imports.length).toBeGreaterThan(50);
  expect(imports.map(wrong).filter((reason) => reason !== undefined)).toEqual([]);
});

test('no import leaves the sources', () => {
  const outside = files.flatMap(importsOf).filter(({ to }) => to.startsWith('..'));
  expect(outside.filter(({ to }) => to !== '../package.json')).toEqual([]);
});

test.each([
  ['device/file.ts', 'targets/linear.ts'],
  ['targets/linear.ts', 'mapper/mapper.ts'],
  ['targets/thin/pool.ts', 'targets/snapshot/origin.ts'],
  ['cli/main.ts', 'mapper/mapper.ts'],
  ['mapper/mapper.ts', 'testing/fake-disks.ts'],
  ['lib/ring.ts', 'formats/struct.ts'],
])('finds that %s may not import %s', (from, to) => {
  expect(wrong({ from, to })).toBeDefined();
});

test.each([
  ['mapper/mapper.ts', 'targets/linear.ts'],
  ['targets/snapshot/snapshot.ts', 'targets/arguments.ts'],
  ['cli/main.ts', 'api/index.ts'],
  ['cli/main.ts', 'errors.ts'],
  ['lib/parts.ts', 'units.ts'],
])('lets %s import %s', (from, to) => {
  expect(wrong({ from, to })).toBe(undefined);
});
