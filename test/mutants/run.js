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

const run = (command, args, timeout) =>
  spawnSync(command, args, {
    cwd: copy,
    env: { ...process.env, ...seeds },
    stdio: 'ignore',
    // A suite that hangs without a guard has noticed, too.
    timeout,
    killSignal: 'SIGKILL',
  }).status === 0;

const vitest = (...suites) =>
  run(join(root, 'node_modules/.bin/vitest'), ['run', '--project', 'unit', '--bail', '1', ...suites], 240_000);

/** The crash suite first, which notices most within seconds; or only the one suite that is given. */
function suitesPass(suite) {
  if (suite) return vitest(suite);
  run(join(root, 'node_modules/.bin/tsc'), ['-p', 'tsconfig.crash.json'], 60_000);
  const crash = ['.build/test/unit/crash/main.js', '--seeds', '600', '--bail'];
  if (!run(process.execPath, crash, 240_000)) return false;
  return vitest('test/unit/crash', 'test/unit/snapshot', 'src/stores');
}

let bad = 0;
try {
  for (const part of [
    'src',
    'test',
    'package.json',
    'tsconfig.json',
    'tsconfig.tools.json',
    'tsconfig.crash.json',
    'vitest.config.ts',
  ])
    cpSync(join(root, part), join(copy, part), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  const chosen = mutants.filter(({ guard }) => words.every((word) => guard.includes(word)));
  const suites = new Set(chosen.map(({ suite }) => suite));
  if (![...suites].every(suitesPass)) {
    console.log('The suites fail with every guard in place.');
    process.exit(2);
  }
  for (const { guard, edits, suite } of chosen) {
    const before = new Map(edits.map(({ file }) => [file, readFileSync(join(copy, file), 'utf8')]));
    const after = new Map(before);
    let verdict = 'missed when gone';
    for (const { file, find, replace } of edits) {
      const text = after.get(file);
      const found = text.split(find).length - 1;
      if (found !== 1) verdict = `NOT FOUND in ${file} (${found} places)`;
      after.set(
        file,
        text.replace(find, () => replace),
      );
    }
    if (!verdict.startsWith('NOT')) {
      for (const [file, text] of after) writeFileSync(join(copy, file), text);
      if (suitesPass(suite)) verdict = 'NOT MISSED: the suites pass without it';
      for (const [file, text] of before) writeFileSync(join(copy, file), text);
    }
    if (verdict.startsWith('NOT')) bad++;
    console.log(`${verdict}: ${guard}`);
  }
} finally {
  rmSync(copy, { recursive: true, force: true });
}
console.log(bad === 0 ? 'every guard is missed when it is gone' : `${bad} guards are not tested`);
process.exit(bad === 0 ? 0 : 1);
