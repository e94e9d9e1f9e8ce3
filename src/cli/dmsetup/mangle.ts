/**
 * Names as users type them and as the mapper stores them. Node names must be safe, so a byte outside
 * `0-9 A-Z a-z # + - . : = @ _` is stored as `\xNN`; UTF-8 text byte by byte.
 */
import { CommandFailure } from '../failure.ts';

export type ManglingMode = 'auto' | 'hex' | 'none';
export type NameKind = 'name' | 'UUID' | 'new name' | 'new UUID';

/** Most bytes of a stored name and a stored uuid. */
export const NAME_MAX = 127;
export const UUID_MAX = 128;

const isSafe = (byte: number) => /[0-9A-Za-z#+\-.:=@_]/.test(String.fromCharCode(byte));
const BACKSLASH = 0x5c;
const X = 0x78;

/** Each with the words that its failure begins with; a second line depends on the command. */
export class MangleFailure extends CommandFailure {
  /** The mangled form, not the text as such, was refused: the caller says for whom. */
  readonly announced: boolean;
  constructor(text: string, announced: boolean) {
    super(text);
    this.announced = announced;
  }
}

/** What is typed, as it is stored. Throws a MangleFailure. */
export function mangle(typed: string, kind: NameKind, mode: ManglingMode): string {
  const limit = kind.endsWith('UUID') ? UUID_MAX : NAME_MAX;
  const tooLong = () => new MangleFailure(`Mangled form of the ${kind} too long for "${typed}".`, true);
  if (mode === 'none') return typed;
  if (mode === 'auto' && typed.includes('\\x5cx'))
    throw new MangleFailure(
      `The ${kind} "${typed}" seems to be mangled more than once. This is not allowed in auto mode.`,
      false,
    );
  const bytes = Buffer.from(typed);
  let out = '';
  let sawMangled = false;
  let sawRaw = false;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i];
    if (mode === 'auto' && byte === BACKSLASH && bytes[i + 1] === X) {
      if (bytes.length - i < 4 || sawRaw) throw mixed(typed, kind);
      out += bytes.toString('latin1', i, i + 4);
      i += 3;
      sawMangled = true;
    } else if (isSafe(byte)) out += String.fromCharCode(byte);
    else {
      if (mode === 'auto' && sawMangled) throw mixed(typed, kind);
      out += `\\x${byte.toString(16).padStart(2, '0')}`;
      sawRaw = true;
    }
    if (out.length > limit) throw tooLong();
  }
  return Buffer.from(out, 'latin1').toString();
}

const mixed = (typed: string, kind: NameKind) =>
  new MangleFailure(
    `The ${kind} "${typed}" contains mixed mangled and unmangled characters or it's already mangled improperly.`,
    true,
  );

/** What is stored, as it is shown. Throws a CommandFailure when a byte should be mangled and is not. */
export function unmangle(stored: string, kind: NameKind, mode: ManglingMode): string {
  return mode === 'none' ? stored : unmangleAll(stored, kind);
}

export function unmangleAll(stored: string, kind: NameKind): string {
  const bytes = Buffer.from(stored);
  const out: number[] = [];
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i];
    if (!isSafe(byte) && byte !== BACKSLASH)
      throw new CommandFailure(`The ${kind} "${stored}" should be mangled but it contains blacklisted characters.`);
    const hex =
      byte === BACKSLASH && bytes[i + 1] === X
        ? /^[0-9a-fA-F]{1,2}/.exec(bytes.toString('latin1', i + 2, i + 4))
        : null;
    if (hex) {
      out.push(Number.parseInt(hex[0], 16));
      i += 3;
    } else out.push(byte);
  }
  return Buffer.from(out).toString();
}
