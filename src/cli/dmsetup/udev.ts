/**
 * Commands for the hand-shake with udev. No udev rule waits for a device of ours, so there is nothing to wait for and
 * nothing to release; what they print is what the real ones do.
 */
import { CommandFailure } from '../failure.ts';
import type { Session } from './session.ts';

/** High half of a cookie, bit by bit; the bits without a word have the number. */
const FLAGS = [
  'DM_UDEV_DISABLE_DM_RULES_FLAG',
  'DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG',
  'DM_UDEV_DISABLE_DISK_RULES_FLAG',
  'DM_UDEV_DISABLE_OTHER_RULES_FLAG',
  'DM_UDEV_LOW_PRIORITY_FLAG',
  'DM_UDEV_DISABLE_LIBRARY_FALLBACK_FLAG',
  'DM_UDEV_PRIMARY_SOURCE_FLAG',
];
const SUBSYSTEM_BIT = 8;

/** A number from 1 to 2^32 - 1, in any base that C knows. */
function cookie(text: string): number {
  const value = /^0x[0-9a-f]+$/i.test(text)
    ? Number.parseInt(text, 16)
    : /^0[0-7]+$/.test(text)
      ? Number.parseInt(text, 8)
      : /^\d+$/.test(text)
        ? Number(text)
        : 0;
  if (value === 0 || value > 0xffff_ffff) throw new CommandFailure('Incorrect cookie value.');
  return value;
}

export function udevFlags(session: Session, [text]: readonly string[]): void {
  const flags = cookie(text) >>> 16;
  for (let bit = 0; bit < 16; bit++) {
    if (!(flags & (1 << bit))) continue;
    const name =
      bit >= SUBSYSTEM_BIT ? `DM_SUBSYSTEM_UDEV_FLAG${bit - SUBSYSTEM_BIT}` : (FLAGS[bit] ?? `DM_UDEV_FLAG${bit}`);
    session.print(`${name}='1'\n`);
  }
}

export function udevComplete(session: Session, [text]: readonly string[]): void {
  session.print(`DM_COOKIE_COMPLETED=${`0x${cookie(text).toString(16)}`.padEnd(12)}\n`);
}

export function udevReleaseCookie(session: Session, [text]: readonly string[]): void {
  const given = text ?? session.options.value('udevcookie') ?? session.io.env.DM_UDEV_COOKIE;
  if (given === undefined) throw new CommandFailure('No udev transaction cookie given.');
  cookie(given);
}

export function udevCompleteAll(session: Session): void {
  session.print('0 semaphores with keys prefixed by 3405 (0xd4d) destroyed. 0 skipped.\n');
}

export function udevCookies(session: Session): void {
  session.print('Cookie       Semid      Value      Last semop time           Last change time\n');
}
