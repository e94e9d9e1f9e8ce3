import { execFileSync } from 'node:child_process';

/** The program that these tests run is the one in dist. */
export default function build(): void {
  execFileSync('npm', ['run', 'build'], { stdio: 'inherit' });
}
