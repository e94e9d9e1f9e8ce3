import {
  DmError,
  mendThinMetadata,
  openThinMetadata,
  type ThinCheckOptions,
  type ThinCheckReport,
} from '../../api/index.ts';
import { define, printJson, type ShortIo, UsageError } from '../short/command.ts';
import { SNAPSHOT } from './options.ts';

export const command = define({
  name: 'thin check',
  operands: 'METADATA',
  summary: 'Says whether the metadata of a thin pool is whole.',
  help: `METADATA is a file or block device whose pool is not active. Every block, tree and reference count is
looked at, of data and of metadata, and of the metadata snapshot if there is one.
Exit status 0 if all is well, 1 if not, as thin_check has it. A wrong total or hint in a space map is told, and
no failure: thin_restore 0.9 writes such, and a pool goes on with it.
Nothing is written, unless --clear-needs-check-flag or --auto-repair is given, which do the same: where nothing is
damaged the flag is cleared with which a pool starts read-only, and space that nobody uses and nobody gets is given back.`,
  options: {
    quiet: { short: 'q', help: 'print nothing, only end with that status' },
    json: { help: 'print the result as JSON' },
    'clear-needs-check-flag': { help: 'put right what harms nobody' },
    'auto-repair': { help: 'the same' },
    'super-block-only': { help: 'look at the superblock alone' },
    'skip-mappings': { help: 'look at devices, not at what they have mapped, and at no count' },
    'ignore-non-fatal-errors': { help: 'end with status 0 where there are only leaks' },
    'metadata-snap': SNAPSHOT,
  },
  async run({ operands: [path], options, io }) {
    const mends = options['clear-needs-check-flag'] !== undefined || options['auto-repair'] !== undefined;
    const ignoresLeaks = options['ignore-non-fatal-errors'] !== undefined;
    const snapshot = options['metadata-snap'] !== undefined;
    const scope: ThinCheckOptions['scope'] =
      options['super-block-only'] !== undefined
        ? 'superblock'
        : options['skip-mappings'] !== undefined
          ? 'devices'
          : undefined;
    if (mends && (scope || snapshot || ignoresLeaks))
      throw new UsageError('what harms nobody is put right only after all of it was looked at');
    if (snapshot && scope) throw new UsageError('--metadata-snap is looked at as a whole');
    try {
      if (mends) {
        const { released, cleared, ...report } = await mendThinMetadata(path, { directory: io.cwd });
        const status = tell(report, ignoresLeaks, options, io);
        if (options.quiet === undefined && options.json === undefined) {
          if (released > 0) io.stderr.write(`note: ${released} leaked blocks were given back\n`);
          if (cleared) io.stderr.write('note: the needs_check flag was cleared\n');
        }
        return status;
      }
      const metadata = await openThinMetadata(path, { directory: io.cwd, snapshot });
      try {
        return tell(await metadata.check(scope && { scope }), ignoresLeaks, options, io);
      } finally {
        await metadata.close();
      }
    } catch (error) {
      if (options.quiet === undefined || !(error instanceof DmError)) throw error;
      return 1;
    }
  },
});

type Prints = Partial<Record<'quiet' | 'json', string>>;

/** Prints what was found; returns the exit status. */
function tell(found: ThinCheckReport, ignoresLeaks: boolean, { quiet, json }: Prints, io: ShortIo): number {
  const { findings, leaks, damaged, devices, transactionId, ...report } = found;
  const { freeMetadataBlocks, needsCheck, truncated } = report;
  // As thin_check has it: a pool goes on with a wrong total.
  const harmless = (severity: string) => severity === 'total' || (ignoresLeaks && severity === 'leak');
  const status = !damaged && findings.every(({ severity }) => harmless(severity)) ? 0 : 1;
  if (quiet !== undefined) return status;
  if (json !== undefined) {
    const mapped = [...devices].map(([id, mappedBlocks]) => ({ id, mappedBlocks }));
    printJson(io, { ok: status === 0, findings, transactionId: Number(transactionId), devices: mapped, ...report });
    return status;
  }
  io.stdout.write(`TRANSACTION_ID=${transactionId}\nMETADATA_FREE_BLOCKS=${freeMetadataBlocks}\n`);
  for (const { severity, message } of findings) io.stderr.write(`${severity}: ${message}\n`);
  if (truncated) io.stderr.write('and more\n');
  if (needsCheck) io.stderr.write('note: the needs_check flag is set: a pool that has it starts read-only\n');
  return status;
}
