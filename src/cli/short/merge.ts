import {
  type DaemonControl,
  DmError,
  directories,
  isDaemonGone,
  type MergeProgress,
  mergeFiles,
  runningDaemon,
  savedSnapshots,
} from '../../api/index.ts';
import { type Call, define, type ShortIo, UsageError } from './command.ts';
import { MergeDisplay, printAmount } from './merge-display.ts';

type Options = 'background' | 'keep' | 'force' | 'raw' | 'json';

/** As the shell counts what SIGINT ended. */
const INTERRUPTED = 130;

export const command = define<Options>({
  name: 'merge',
  operands: 'NAME [COWFILE]',
  summary: 'Puts what a fork changed into its image. Then the fork and its COW file are gone.',
  help: `At once the origin device shows what the fork held, and may be used; the chunks are copied in
the background, by the daemon. Other forks of the image stay as they are. Interrupted, killed
or after a power cut the merge goes on; to see how far it is, repeat the command.

With two operands, an IMAGE and a COWFILE that no daemon has open are merged by this command
alone, which can be killed and repeated. The COW file stays, as an empty store.`,
  options: {
    background: { help: 'return at once; dmkit ls shows how far it is' },
    keep: { help: 'keep the COW file, emptied' },
    force: {
      help: 'although the origin device is open; files: although a stopped daemon has other forks of the image',
    },
    raw: { help: 'files: take the image as it is, though it looks like qcow2 or another format' },
    json: { help: 'print an event a line as JSON: start, progress, done, failed, interrupted' },
  },
  run: (call) => (call.operands.length === 2 ? mergeOffline(call) : mergeOnline(call)),
});

async function mergeOnline({ operands: [name], options, io }: Call<Options>): Promise<number> {
  if (options.raw !== undefined) throw new UsageError('--raw is for two files: dmkit merge IMAGE COWFILE --raw');
  const display = new MergeDisplay(io, options.json !== undefined);
  const daemon = await io.control();
  let progress = await daemon.merge(name, { keep: options.keep !== undefined, force: options.force !== undefined });
  display.event('start', progress);
  if (options.background !== undefined && progress.state === 'merging') {
    if (options.json === undefined)
      io.stdout.write(`${name} is being merged into ${progress.image}; to wait for it: dmkit merge ${name}\n`);
    return 0;
  }
  // Asked for as late as that: until here there is nothing that Ctrl-C would have to spare.
  const { signal } = io;
  let told: string | undefined;
  while (progress.state === 'merging') {
    display.progress(progress);
    if (progress.error !== undefined && progress.error !== told) {
      display.end();
      io.stderr.write(`dmkit: ${progress.error}; it is tried again until it succeeds\n`);
    }
    told = progress.error;
    const next = await followed(daemon, progress, signal).catch((error: DmError) => {
      display.end();
      display.event('failed', { ...progress, state: 'failed', error: error.message, hint: error.hint });
      throw error;
    });
    if (next === undefined) {
      display.end();
      display.event('interrupted', progress);
      io.stderr.write(`dmkit: ${name} goes on being merged by the daemon; to follow it: dmkit merge ${name}\n`);
      return INTERRUPTED;
    }
    progress = next;
  }
  display.end();
  return tell(progress, display, options.json !== undefined, io);
}

/** The next state; undefined when `signal` has fired. */
async function followed(
  daemon: DaemonControl,
  { name, version }: MergeProgress,
  signal: AbortSignal | undefined,
): Promise<MergeProgress | undefined> {
  try {
    return signal?.aborted ? undefined : await daemon.mergeProgress(name, { since: version }, signal);
  } catch (error) {
    if (signal?.aborted) return undefined;
    if (!isDaemonGone(error)) throw error;
    throw new DmError('DAEMON_LOST', 'EIO', `The daemon has stopped in the middle of the merge of ${name}`, {
      hint: `nothing is lost, and the merge goes on when it starts again: dmkit merge ${name}`,
      cause: error,
    });
  }
}

function tell(progress: MergeProgress, display: MergeDisplay, json: boolean, io: ShortIo): number {
  const { name, image, state, error, hint, deleted, kept, originRemoved } = progress;
  if (state !== 'done') {
    display.event('failed', progress);
    throw new DmError('MERGE_FAILED', 'EIO', error ?? `The merge of ${name} has failed`, { hint });
  }
  display.event('done', progress);
  if (error !== undefined) io.stderr.write(`dmkit: ${error}\n`);
  if (json) return 0;
  const gone = deleted === undefined ? '' : `, and ${deleted} is gone`;
  io.stdout.write(`${name} is merged into ${image} (${printAmount(progress)})${gone}\n`);
  if (kept) io.stdout.write(`kept ${kept}, an empty store now\n`);
  if (originRemoved) io.stdout.write(`it was the last fork: the origin device ${originRemoved} is gone too\n`);
  return 0;
}

async function mergeOffline({ operands: [image, cow], options, io }: Call<Options>): Promise<number> {
  for (const name of ['background', 'keep'] as const)
    if (options[name] !== undefined) throw new UsageError(`--${name} is for forks: dmkit merge NAME --${name}`);
  const json = options.json !== undefined;
  const display = new MergeDisplay(io, json);
  if (options.force === undefined) await checkOthers(image, cow, io);
  // Asked for before anything is opened, so that Ctrl-C ends a batch and closes both in order.
  const { signal } = io;
  let begun = false;
  try {
    const result = await mergeFiles(image, cow, {
      raw: options.raw !== undefined,
      directory: io.cwd,
      signal,
      onProgress: (progress) => {
        if (!begun) display.event('start', progress);
        begun = true;
        display.progress(progress);
      },
    });
    display.end();
    if (result.state === 'stopped') {
      display.event('interrupted', result);
      io.stderr.write(
        `dmkit: stopped after ${result.merged} of ${result.total} chunks; until the command is repeated, ${result.image} is a mix of old and new\n`,
      );
      return INTERRUPTED;
    }
    display.event('done', result);
    if (!json)
      io.stdout.write(
        `${result.cow} is merged into ${result.image} (${printAmount(result)})\nkept ${result.cow}, an empty store now\n`,
      );
    return 0;
  } catch (error) {
    display.end();
    const { message, hint } = error as DmError;
    if (begun) display.event('failed', { error: message, hint });
    throw await explained(error, image, cow, io);
  }
}

/** Forks that nobody serves make no copies of what the merge overwrites. */
async function checkOthers(image: string, cow: string, io: ShortIo): Promise<void> {
  const where = directories(io.env);
  // A daemon that runs has them open, and their lock says so.
  if (await runningDaemon(where)) return;
  const { others, own } = await savedSnapshots(where, { image, cow, directory: io.cwd });
  if (others.length === 0) return;
  throw new DmError(
    'MERGE_OTHERS',
    'EBUSY',
    `Cannot merge into ${image}: ${others.join(', ')}, of a daemon that does not run, would show the changes too`,
    {
      hint: `${own === undefined ? 'start the daemon, fork the image with that COW file, and merge that' : `let the daemon do it: dmkit merge ${own}`}\nor merge all the same: --force`,
    },
  );
}

/** Adds to `in use` which fork of the running daemon it is. */
async function explained(error: unknown, image: string, cow: string, io: ShortIo): Promise<unknown> {
  if (!(error instanceof DmError) || error.code !== 'DEVICE_IN_USE') return error;
  const daemon = await runningDaemon(directories(io.env)).catch(() => undefined);
  if (!daemon) return error;
  const { own, others } = await savedSnapshots(directories(io.env), { image, cow, directory: io.cwd });
  if (own === undefined && others.length === 0) return error;
  const hint =
    own === undefined
      ? `the daemon has forks of the image: ${others.join(' ')}; drop them, or fork the image with that COW file and merge that`
      : `it is the fork ${own} of the daemon: dmkit merge ${own}`;
  return new DmError(error.code, error.errno, error.message, { hint, cause: error });
}
