/** The documents say what the code does: every error code is listed, every link and command leads somewhere. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ERRNO } from '../../src/errors.ts';
import { blocks, commands } from '../support/documents.ts';
import { documents, ROOT, sources } from '../support/repository.ts';

const read = (path: string) => readFileSync(join(ROOT, path), 'utf8');

describe('error codes', () => {
  /** First arguments of `new DmError(…`, which name a code, or several, or a pattern of codes. */
  const thrown = new Map<string, string>();
  const patterns: RegExp[] = [];
  const product = sources.filter((path) => /^src\/(?!testing\/|device\/simulated).*(?<!\.test)\.ts$/.test(path));
  for (const path of product) {
    const text = read(path);
    for (const [, argument] of text.matchAll(/(?:new (?:Dm|Table|Format)Error|\bsuper)\(\s*((?:'[^']*'|[^,'])*?),/g)) {
      for (const [, code] of argument.matchAll(/'([A-Z][A-Z0-9_]*)'/g))
        if (!new RegExp(`=== '${code}'`).test(argument) || !(code in ERRNO)) thrown.set(code, path);
      for (const [, template] of argument.matchAll(/`((?:[A-Z_]|\$\{[^}]*\})*[A-Z_]{2,}[^`]*)`/g))
        patterns.push(new RegExp(`^${template.replace(/\$\{[^}]*\}/g, '[A-Z_*a-z]+')}$`));
      // A helper that takes the code: whoever calls it in that file names it in capitals.
      if (/^\w+$/.test(argument) && /\bcode: /.test(text))
        for (const [, code] of text.matchAll(/\w\(\s*'([A-Z][A-Z0-9]*_[A-Z0-9_]+)'/g)) thrown.set(code, path);
    }
  }
  const rows = read('docs/errors.md')
    .split('\n')
    .filter((line) => /^\| `?[A-Z]/.test(line));
  const documented = rows.map((row) => row.split('|')[1].replace(/[`\s]/g, ''));

  it('are found at all', () => {
    expect(thrown.size).toBeGreaterThan(30);
    expect(documented.length).toBeGreaterThan(10);
  });

  it('that are thrown are each listed once in docs/errors.md', () => {
    const missing = [...thrown].filter(([code]) => !documented.includes(code));
    expect(missing.map(([code, path]) => `${code} (${path})`)).toEqual([]);
    expect(documented.filter((code, i) => documented.indexOf(code) !== i)).toEqual([]);
    for (const pattern of patterns)
      expect(
        documented.some((code) => pattern.test(code)),
        String(pattern),
      ).toBe(true);
  });

  it('that are listed are each thrown somewhere', () => {
    const known = (code: string) => thrown.has(code) || patterns.some((pattern) => pattern.test(code));
    expect(documented.filter((code) => !known(code))).toEqual([]);
  });

  it('come with an errno that exists, a meaning and a next step', () => {
    for (const row of rows) {
      const [, code, errno, meaning, advice] = row.split('|').map((cell) => cell.trim());
      const named = errno.match(/E[A-Z0-9]{2,}/g) ?? [];
      expect(
        named.filter((name) => !(name in ERRNO)),
        code,
      ).toEqual([]);
      expect(named.length > 0 || /same|system|server|of the /.test(errno), `${code}: ${errno}`).toBe(true);
      expect(meaning.length > 10 && advice.length > 5, code).toBe(true);
    }
  });
});

describe('documents', () => {
  const scripts = JSON.parse(read('package.json')).scripts as Record<string, string>;

  it.each(documents)('%s: relative links lead to files', (path) => {
    const links = [...read(path).matchAll(/\]\(([^)#\s]+)[^)]*\)/g)].map(([, link]) => link);
    const local = links.filter((link) => !/^[a-z]+:/.test(link));
    expect(local.filter((link) => !existsSync(join(ROOT, dirname(path), link)))).toEqual([]);
  });

  it.each(documents)(
    '%s: commands in sh blocks are npm scripts that exist, those in console blocks are run',
    (path) => {
      const lines = blocks(read(path), 'sh').flatMap(({ text }) => text.split('\n'));
      for (const line of lines)
        for (const part of line
          .replace(/#.*|^[A-Z_]+=\S+/g, '')
          .split('&&')
          .filter((word) => word.trim() !== '')) {
          const [program, word, name] = part.trim().split(/\s+/);
          const script = word === 'run' ? name : word;
          const runner = program === 'npx' && word === 'vitest' ? 'npm' : program;
          expect(runner, `${path}: only npm belongs in sh blocks, other commands in console blocks: ${line}`).toBe(
            'npm',
          );
          expect(['ci', 'vitest', ...Object.keys(scripts)], line).toContain(script);
        }
      for (const block of blocks(read(path), 'console')) expect(commands(block).length, block.text).toBeGreaterThan(0);
      for (const language of ['bash', 'shell']) expect(blocks(read(path), language)).toEqual([]);
    },
  );
});

describe('the repository', () => {
  /** What every Linux has below its root, but for the folders of people. */
  const EVERYWHERE = new Set('bin boot dev etc lib lib64 media mnt opt proc run sbin srv sys tmp usr var'.split(' '));
  /** The control socket's API, the folder inside the kernel machine, and a path that tests want to be missing. */
  const OURS = new Set(['v1', 'job', 'nonexistent']);

  it('refers to nothing outside of itself', () => {
    const outside: string[] = [];
    for (const path of sources) {
      const text = read(path);
      for (const [whole, reference] of text.matchAll(/(?<![\w.])((?:\.\.\/)+[\w./-]*)/g)) {
        const target = resolve(ROOT, dirname(path), reference);
        if (relative(ROOT, target).startsWith('..')) outside.push(`${path}: ${whole}`);
      }
      for (const [whole, top] of text.matchAll(/(?<=['"`\s(=])\/(\w+)\/(?!\.(?:test|exec)\()[\w.-]+/g))
        if (!EVERYWHERE.has(top) && !OURS.has(top) && top.length > 1) outside.push(`${path}: ${whole}`);
    }
    expect(outside).toEqual([]);
  });
});
