/** Commands that change what is there: remove, suspend, resume, clear, rename, message, wait and their kin. */
import type { DeviceInfo } from '../../api/index.ts';
import { CommandFailure } from '../failure.ts';
import { nameWithSlash, wipe } from './create.ts';
import { eachDevice } from './devices.ts';
import { NAME_MAX, UUID_MAX } from './mangle.ts';
import { leadingInteger } from './options.ts';
import { infoBlock } from './print.ts';
import { byName, type Given, OperationFailure, type Session } from './session.ts';

const RETRIES = 25;
const RETRY_MS = 200;
const UNWAITING = { noflush: true, nolockfs: true };

export function remove(session: Session, args: readonly string[]): Promise<void> {
  return eachDevice(session, args, { select: true }, async (device) => {
    if (session.options.has('force')) await unlessFailed(session, () => wipe(session, device, UNWAITING));
    await removeOne(session, device);
  });
}

async function removeOne(session: Session, device: Given): Promise<void> {
  const deferred = session.options.has('deferred');
  for (let attempt = 1; ; attempt++) {
    try {
      return await session.call('remove', device, (control) =>
        control.remove(device.ref, deferred ? { deferred } : {}),
      );
    } catch (error) {
      const again = session.options.has('retry') && error instanceof OperationFailure && error.errno === 'EBUSY';
      if (!again || attempt === RETRIES) throw error;
      session.printError(`${error.message}\n`);
      await session.sleep(RETRY_MS);
    }
  }
}

/** Prints a failure and goes on. */
async function unlessFailed(session: Session, run: () => Promise<void>): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (!(error instanceof CommandFailure)) throw error;
    if (error.message !== '') session.printError(`${error.message}\n`);
  }
}

export async function removeAll(session: Session): Promise<void> {
  const options = session.options.has('deferred') ? { deferred: true } : {};
  const everything = () => session.call('remove_all', byName(''), (control) => control.removeAll(options));
  await everything();
  if (!session.options.has('force')) return;
  for (const { name } of await session.list())
    await unlessFailed(session, () => wipe(session, byName(name), UNWAITING));
  await everything();
  const left = (await session.list()).length;
  // Scripts rely on the status 0 that goes with it.
  if (left > 0) session.printError(`Unable to remove ${left} device(s).\n`);
}

export async function wipeTable(session: Session, args: readonly string[]): Promise<void> {
  if (args.length === 0 && !session.options.value('select')) throw new CommandFailure('No device specified.');
  const { noflush, nolockfs } = session.suspendOptions;
  const suspend = { noflush: noflush || session.options.has('force'), nolockfs };
  await eachDevice(session, args, { select: true }, (device) => wipe(session, device, suspend));
}

/** suspend, resume and clear differ in one call. */
function simple(operation: 'suspend' | 'resume' | 'clear') {
  return (session: Session, args: readonly string[]): Promise<void> =>
    eachDevice(session, args, { select: true }, async (device) => {
      const info = await session.call(
        operation,
        device,
        (control): Promise<DeviceInfo> =>
          operation === 'clear' ? control.clear(device.ref) : control[operation](device.ref, session.suspendOptions),
      );
      if (session.options.verbose > 0) session.print(infoBlock(session, info));
    });
}

export const suspend = simple('suspend');
export const resume = simple('resume');
export const clear = simple('clear');

export async function rename(session: Session, args: readonly string[]): Promise<void> {
  const [name, wanted] = args.length === 2 ? args : [undefined, args[0]];
  if (session.options.has('setuuid')) {
    if (Buffer.byteLength(wanted) > UUID_MAX) throw new CommandFailure(`Uuid "${wanted}" too long`);
    if (wanted === '') throw new CommandFailure('Non empty new uuid is required.');
  } else {
    if (wanted === '') throw new CommandFailure('Non empty new name is required.');
    if (wanted.includes('/')) throw nameWithSlash(wanted);
    if (Buffer.byteLength(wanted) > NAME_MAX) throw new CommandFailure(`Name "${wanted}" too long`);
  }
  const device = await session.device(name);
  if (session.options.has('setuuid')) {
    const uuid = session.stored(wanted, 'new UUID');
    await session.call('rename', device, (control) => control.setUuid(device.ref, uuid));
  } else {
    const newName = session.stored(wanted, 'new name');
    await session.call('rename', device, (control) => control.rename(device.ref, newName));
  }
}

const UINT64_MAX = 2n ** 64n - 1n;

export async function message(session: Session, args: readonly string[]): Promise<void> {
  const words = [...args];
  const name = session.namedByOption ? undefined : words.shift();
  const device = await session.device(name);
  const typed = words.shift() ?? '';
  if (!/^\s*\+?\d+$/.test(typed) || BigInt(typed.trim().replace('+', '')) > UINT64_MAX)
    throw new CommandFailure('Invalid sector.');
  if (words.length === 0) session.printError('No message supplied.\n');
  const reply = await session.call('message', device, (control) =>
    control.message(device.ref, Number(typed), words.join(' ')),
  );
  if (reply !== '') session.print(reply.endsWith('\n') ? reply : `${reply}\n`);
}

export async function wait(session: Session, args: readonly string[]): Promise<void> {
  const words = [...args];
  const name = session.namedByOption && words.length < 2 ? undefined : words.shift();
  const device = await session.device(name);
  const event = leadingInteger(words[0] ?? '0');
  const info = await session.call('waitevent', device, (control) => control.wait(device.ref, event, session.io.signal));
  if (info && session.options.verbose > 0) session.print(infoBlock(session, info));
}

export async function setGeometry(session: Session, args: readonly string[]): Promise<void> {
  const device = await session.device(args[0]);
  // What is no number is refused by the mapper as one that is out of range.
  const [cylinders, heads, sectors, start] = args.slice(1).map((text) => (/^\d+$/.test(text) ? Number(text) : -1));
  await session.call('setgeometry', device, (control) =>
    control.setGeometry(device.ref, [cylinders, heads, sectors, start]),
  );
}
