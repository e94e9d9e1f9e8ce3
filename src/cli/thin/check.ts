import { openThinMetadata } from '../../api/index.ts';
import { define, printJson } from '../short/command.ts';

export const command = define({
  name: 'thin check',
  operands: 'METADATA',
  summary: 'Says whether the metadata of a thin pool is whole. Reads only.',
  help: `METADATA is a file or block device whose pool is not active. Every block, tree and reference count is
looked at, of data and of metadata, and of the metadata snapshot if there is one.
Exit status 0 if all is well, 1 if not, as thin_check has it. A wrong total or hint in a space map is told, and
no failure: thin_restore 0.9 writes such, and a pool goes on with it.`,
  options: {
    quiet: { short: 'q', help: 'print nothing, only end with that status' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [path], options, io }) {
    const metadata = await openThinMetadata(path, { directory: io.cwd });
    try {
      const { findings, devices, transactionId, ...report } = await metadata.check();
      const { freeMetadataBlocks, needsCheck, truncated } = report;
      // As thin_check has it: a pool goes on with a wrong total.
      const status = findings.some(({ severity }) => severity !== 'total') ? 1 : 0;
      if (options.quiet !== undefined) return status;
      if (options.json !== undefined) {
        const mapped = [...devices].map(([id, mappedBlocks]) => ({ id, mappedBlocks }));
        printJson(io, { ok: status === 0, findings, transactionId: Number(transactionId), devices: mapped, ...report });
        return status;
      }
      io.stdout.write(`TRANSACTION_ID=${transactionId}\nMETADATA_FREE_BLOCKS=${freeMetadataBlocks}\n`);
      for (const { severity, message } of findings) io.stderr.write(`${severity}: ${message}\n`);
      if (truncated) io.stderr.write('and more\n');
      if (needsCheck) io.stderr.write('note: the needs_check flag is set: a pool that has it starts read-only\n');
      return status;
    } finally {
      await metadata.close();
    }
  },
});
