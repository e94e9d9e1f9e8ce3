/**
 * `npm run mutants [WORD…]`: takes each guard away (mutants.js; only those whose text has all WORDs) and demands that the
 * suites notice. Exits 1 if one is not missed, or if the code it stands in has changed so that it cannot be found.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, cpSync, mkdtempSync, openSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { mutants } from './mutants.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const words = process.argv.slice(2);
const copy = mkdtempSync(join(tmpdir(), 'dmkit-mutants-'));
const seeds = { CRASH_SEEDS: '40', PROPERTY_SEEDS: '120' };

/** Undefined if it ended well, else what it said. Into a file: what a killed suite leaves running would keep a pipe open. */
function failureOf(command, args, timeout) {
  const path = join(copy, 'output');
  const output = openSync(path, 'w');
  const { status } = spawnSync(command, args, {
    cwd: copy,
    env: { ...process.env, ...seeds },
    stdio: ['ignore', output, output],
    // A suite that hangs without a guard has noticed, too.
    timeout,
    killSignal: 'SIGKILL',
  });
  closeSync(output);
  return status === 0 ? undefined : readFileSync(path, 'utf8');
}

/** Undefined if the suites pass, else who noticed what: the crash suite first, which notices most within seconds. */
function noticed(suite) {
  if (!suite) {
    failureOf(join(root, 'node_modules/.bin/tsc'), ['-p', 'tsconfig.crash.json'], 60_000);
    const crash = ['.build/test/unit/crash/main.js', '--seeds', '600', '--bail'];
    const failure = failureOf(process.execPath, crash, 240_000);
    if (failure !== undefined) return /^(?!\d+ of |\d+ s$).+/m.exec(failure)?.[0] ?? 'the crash suite hangs';
  }
  const suites = suite
    ? [suite]
    : [
        'test/unit/crash/store',
        'test/unit/crash/pause',
        'test/unit/crash/property',
        'test/unit/snapshot',
        'src/stores',
      ];
  const vitest = ['run', '--project', 'unit', '--reporter', 'json', '--bail', '1', ...suites];
  const failure = failureOf(join(root, 'node_modules/.bin/vitest'), vitest, 240_000);
  if (failure === undefined) return undefined;
  return /"status":"failed","title":"([^"]*)"/.exec(failure)?.[1] ?? 'a unit test hangs';
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
  for (const suite of suites) {
    const failure = noticed(suite);
    if (failure === undefined) continue;
    console.log(`The suites fail with every guard in place: ${failure}`);
    rmSync(copy, { recursive: true, force: true });
    process.exit(2);
  }
  for (const { guard, edits, suite } of chosen) {
    const before = new Map(edits.map(({ file }) => [file, readFileSync(join(copy, file), 'utf8')]));
    const after = new Map(before);
    let verdict = '';
    let why = '';
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
      const failure = noticed(suite);
      verdict = failure === undefined ? 'NOT MISSED' : 'missed when gone';
      if (failure !== undefined) why = `\n    ${failure}`;
      for (const [file, text] of before) writeFileSync(join(copy, file), text);
    }
    if (verdict.startsWith('NOT')) bad++;
    console.log(`${verdict}: ${guard}${why}`);
  }
} finally {
  rmSync(copy, { recursive: true, force: true });
}
console.log(bad === 0 ? 'every guard is missed when it is gone' : `${bad} guards are not tested`);
process.exit(bad === 0 ? 0 : 1);
