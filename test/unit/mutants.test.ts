import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { mutants } from '../mutants/mutants.js';

const guards = readFileSync('docs/crash-safety.md', 'utf8');

test.each(mutants)('the guard stands where `npm run mutants` looks for it, and in the document: $guard', (mutant) => {
  const { guard, edits } = mutant;
  for (const { file, find, replace } of edits) {
    expect(readFileSync(file, 'utf8').split(find).length - 1).toBe(1);
    expect(replace).not.toBe(find);
  }
  expect(guards).toContain(`| ${guard} |`);
});
