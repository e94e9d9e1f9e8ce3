/** The names that devices get, and may have. */
import { basename } from 'node:path';
import { DmError } from '../../errors.ts';

/** What the fork of `disk.img` calls its origin: `disk`, else `disk-origin`, `disk-origin2`, … */
export function* originNames(image: string): Generator<string, never> {
  const plain = basename(image.replace(/[?#].*$/s, '').replace(/\/+$/, ''))
    .replace(/\.[^.]*$/, '')
    .replace(/[^0-9A-Za-z#+\-.:=@_]/g, '_')
    .slice(0, 100);
  const usable = plain === '' || plain === '.' || plain === '..' || plain === 'control' ? 'image' : plain;
  yield usable;
  for (let number = 1; ; number++) yield `${usable}-origin${number === 1 ? '' : number}`;
}

/** Names of forks end in file names, URIs and shell lines: only what needs no escape anywhere. */
export function checkName(name: string): void {
  if (/^[0-9A-Za-z_@][0-9A-Za-z#+\-.:=@_]{0,126}$/.test(name) && name !== 'control') return;
  throw new DmError('FORK_NAME', 'EINVAL', `Cannot name a device ${JSON.stringify(name)}`, {
    hint: 'letters, digits and # + - . : = @ _, beginning with a letter or digit, at most 127',
  });
}
