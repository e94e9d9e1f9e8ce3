import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const COUNT = 83;

/** `26 to 29, 31` as they begin the name of a test. */
function numbersOf(name: string): number[] {
  return name.split(', ').flatMap((part) => {
    const [first, last = first] = part.split(' to ').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

test('each scenario is a test that bears its number', () => {
  const shown = new Set<number>();
  for (const file of readdirSync(import.meta.dirname)) {
    if (!file.endsWith('.test.ts')) continue;
    const text = readFileSync(join(import.meta.dirname, file), 'utf8');
    for (const [, name] of text.matchAll(/['"](\d+(?:(?:, | to )\d+)*)[.:] /g))
      for (const number of numbersOf(name)) shown.add(number);
  }
  const all = Array.from({ length: COUNT }, (_, i) => i + 1);
  expect(all.filter((number) => !shown.has(number))).toEqual([]);
});
