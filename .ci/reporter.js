/**
 * A reporter for vitest. Writes to $CI_WHY what is red, each with its file and the first lines of why, and then to
 * $CI_COUNT "PASSED FAILED". A skipped test counts as failed, and so does what no test counts: a file that could not be
 * loaded, an error outside of every test, no tests at all.
 */
import { writeFileSync } from 'node:fs';

const LINES = 15;
const COLOURS = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, 'g');

/** The difference says more than the message, which shortens it; then where it was thrown. */
function why({ message, diff, stacks = [], cause }) {
  const lines = `${message ?? 'without a message'}\n${diff ?? ''}`.replace(COLOURS, '').split('\n');
  const shown = lines.filter((line) => line.trim() !== '').slice(0, LINES);
  shown.push(...stacks.slice(0, 1).map(({ file, line }) => `at ${file}:${line}`));
  return [...shown, ...(cause ? [`caused by ${cause.message}`] : [])].map((line) => `    ${line}\n`).join('');
}

export default class CiReporter {
  onTestRunEnd(modules, outside) {
    const count = { passed: 0, failed: 0 };
    let red = '';
    const tell = (what, errors) => {
      red += `${what}\n${errors.map(why).join('')}`;
    };
    for (const module of modules) {
      const { relativeModuleId: file, children } = module;
      const before = count.failed;
      for (const test of children.allTests()) {
        const { state, errors = [] } = test.result();
        count[state === 'passed' ? 'passed' : 'failed']++;
        if (state !== 'passed') tell(`${state}: ${test.fullName} (${file})`, errors);
      }
      const errors = [module, ...children.allSuites()].flatMap((suite) => suite.errors());
      if (errors.length > 0) tell(`failed: ${file}`, errors);
      if (errors.length > 0 && count.failed === before) count.failed++;
    }
    if (outside.length > 0) tell('failed: outside of every test', outside);
    if (count.failed === 0 && (outside.length > 0 || count.passed === 0)) count.failed = 1;
    writeFileSync(process.env.CI_WHY, red);
    writeFileSync(process.env.CI_COUNT, `${count.passed} ${count.failed}\n`);
  }
}
