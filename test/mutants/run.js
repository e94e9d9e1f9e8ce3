/**
 * `npm run mutants [WORD…]`: takes each guard away (mutants.js; only those whose text has all WORDs) and demands that the
 * suites notice. Exits 1 if one is not missed, or if the code it stands in has changed so that it cannot be found.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { mutants } from './mutants.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const words = process.argv.slice(2);
const copy = mkdtempSync(join(tmpdir(), 'dmkit-mutants-'));
const seeds = { CRASH_SEEDS: '40', PROPERTY_SEEDS: '120' };

function suitesPass() {
  const { status } = spawnSync(
    join(root, 'node_modules/.bin/vitest'),
    ['run', '--project', 'unit', '--bail', '1', 'test/unit/crash', 'test/unit/snapshot', 'src/stores'],
    {
      cwd: copy,
      env: { ...process.env, ...seeds },
      stdio: 'ignore',
      // A suite that hangs without a guard has noticed, too.
      timeout: 240_000,
      killSignal: 'SIGKILL',
    },
  );
  return status === 0;
}

let bad = 0;
try {
  for (const part of ['src', 'test', 'package.json', 'tsconfig.json', 'vitest.config.ts'])
    cpSync(join(root, part), join(copy, part), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  for (const { guard, file, find, replace } of mutants.filter(({ guard }) =>
    words.every((word) => guard.includes(word)),
  )) {
    const path = join(copy, file);
    const text = readFileSync(path, 'utf8');
    const found = text.split(find).length - 1;
    let verdict = 'missed when gone';
    if (found !== 1) verdict = `NOT FOUND in ${file} (${found} places)`;
    else {
      writeFileSync(
        path,
        text.replace(find, () => replace),
      );
      if (suitesPass()) verdict = 'NOT MISSED: the suites pass without it';
      writeFileSync(path, text);
    }
    if (verdict.startsWith('NOT')) bad++;
    console.log(`${verdict}: ${guard}`);
  }
} finally {
  rmSync(copy, { recursive: true, force: true });
}
console.log(bad === 0 ? 'every guard is missed when it is gone' : `${bad} guards are not tested`);
process.exit(bad === 0 ? 0 : 1);
