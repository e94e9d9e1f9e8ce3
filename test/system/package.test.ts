/** The package as npm packs and installs it: nothing is missing in it, and nothing needs a script or another package. */
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ROOT } from '../support/repository.ts';
import { World } from './program.ts';

const world = new World();
let files: string[];

beforeAll(async () => {
  // Not the scripts: they would build anew under the other tests.
  const packed = await world.ok('npm', 'pack', ROOT, '--ignore-scripts', '--json');
  const [{ filename, files: found }] = JSON.parse(packed);
  files = found.map(({ path }: { path: string }) => path);
  writeFileSync(world.path('package.json'), '{ "type": "module" }');
  await world.ok('npm', 'install', `./${filename}`, '--offline', '--omit=optional', '--no-audit', '--no-fund');
});
afterAll(() => world.close());

test('holds the program, the modules, the documents and the examples, and no tests', () => {
  for (const path of [
    'bin/dmkit',
    'dist/api/index.js',
    'dist/api/index.d.ts',
    'docs/README.md',
    'LICENSE',
    'README.md',
  ])
    expect(files).toContain(path);
  expect(files.filter((path) => /\.test\.|^(src|test|bench|node_modules)\//.test(path))).toEqual([]);
});

test('has a command', async () => {
  expect(await world.ok('npx', '--offline', 'dmkit', '--help')).toMatch(/dmkit fork disk\.img dev/);
});

test('opens its three doors', async () => {
  writeFileSync(
    world.path('doors.js'),
    `import { DeviceMapper } from 'dmkit';
     import { exceptionStore } from 'dmkit/formats';
     import { targetSuite } from 'dmkit/testing';
     const dm = await DeviceMapper.open();
     console.log((await dm.targets()).length > 0, exceptionStore.VERSION, typeof targetSuite);
     await dm.close();`,
  );
  expect(await world.ok('node', 'doors.js')).toBe('true 1 function\n');
});

test('brings an example that runs', async () => {
  expect(await world.ok('node', 'node_modules/dmkit/examples/fork-in-process.js')).toMatch(/^512 bytes differ/m);
});
