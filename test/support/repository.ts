/** The files of the repository, without what is installed, built, recorded or generated. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

export const ROOT = join(import.meta.dirname, '../..');

const SKIPPED = new Set([
  '.git',
  '.build',
  'node_modules',
  'dist',
  'package-lock.json',
  'fixtures',
  'results',
  'coverage',
]);

function* walk(folder: string): Generator<string> {
  for (const entry of readdirSync(join(ROOT, folder), { withFileTypes: true })) {
    const path = folder === '' ? entry.name : `${folder}/${entry.name}`;
    if (SKIPPED.has(entry.name)) continue;
    if (entry.isDirectory()) yield* walk(path);
    else if (entry.isFile()) yield path;
  }
}

const files = [...walk('')].sort();
/** Text: code, configuration and documents. */
export const sources = files.filter((path) => /(^|\/)[^.]+$|\.(ts|js|json|md|sh|yml|service)$/.test(path));
/** README.md and everything in docs/. */
export const documents = files.filter((path) => /^(README|docs\/.*)\.md$/.test(path));
