/**
 * Adds up a report of vitest's JSON reporter: prints "PASSED FAILED".
 *
 *     tally.js REPORT STATUS        STATUS: how vitest itself ended
 *
 * Names on stderr the tests that did not pass. A skipped test counts as failed, and so does what no test counts: a missing
 * report, no tests at all, a file that could not be loaded, a bad end.
 */
import { readFileSync } from 'node:fs';

const [path, status] = process.argv.slice(2);
let report;
try {
  report = JSON.parse(readFileSync(path, 'utf8'));
} catch {
  report = {};
}
const { numPassedTests: passed = 0, numTotalTests: total = 0, testResults = [] } = report;
for (const { assertionResults } of testResults)
  for (const { status, fullName } of assertionResults)
    if (status !== 'passed') console.error(`${status === 'failed' ? 'failed' : 'skipped'}: ${fullName}`);
const failed = total - passed;
const wrong = status !== '0' || total === 0;
console.log(`${passed} ${failed === 0 && wrong ? 1 : failed}`);
