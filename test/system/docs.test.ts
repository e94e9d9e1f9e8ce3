/** Every command in a `console` block of README.md and docs/ is run, in order, and prints what the document says. */
import { readFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { blocks, commands, matches } from '../support/documents.ts';
import { documents, ROOT } from '../support/repository.ts';
import { PROGRAM, World } from './program.ts';

const examples = documents
  .map((path) => ({ path, list: blocks(readFileSync(join(ROOT, path), 'utf8'), 'console').flatMap(commands) }))
  .filter(({ list }) => list.length > 0);

describe('the language of the examples', () => {
  it('joins continued lines, and keeps the output of each command', () => {
    const [block] = blocks('# x\n```console\n$ a \\\n    b\nout\n\n$ c\n```\n', 'console');
    expect(commands(block)).toEqual([
      { command: 'a \\\n    b', output: ['out', ''], line: 3 },
      { command: 'c', output: [], line: 7 },
    ]);
  });

  it.each([
    ['one\ntwo\n', ['one', 'two'], true],
    ['one\ntwo\n', ['one'], false],
    ['one 17 two\n', ['one … two'], true],
    ['a\nb\nc\nd\n', ['a', '…', 'd'], true],
    ['1.5\n', ['1x5'], false],
    ['1x5\n', ['1.5'], false],
    ['anything', [], true],
  ])('compares %j with %j', (printed, output, expected) => {
    expect(matches(printed, output)).toBe(expected);
  });
});

it('README.md has an example', () => {
  expect(examples.map(({ path }) => path)).toContain('README.md');
});

it.each(examples)('$path: the commands do what it says', async ({ path, list }) => {
  const world = new World();
  const env = { PATH: [dirname(PROGRAM), process.env.PATH].join(delimiter) };
  try {
    for (const { command, output, line } of list) {
      const { status, stdout, stderr } = await world.exec('bash', ['-c', command], env);
      expect(status, `${path}:${line}: ${command}\n${stdout}${stderr}`).toBe(0);
      expect(matches(stdout, output), `${path}:${line}: ${command}\nprinted:\n${stdout}`).toBe(true);
    }
  } finally {
    await world.close();
  }
});
