/** What the program is when it is called by the name of one of thin-provisioning-tools. */

/** The command that a tool is, and the options that it always has: theirs write over whatever is there. */
export const THIN_TOOLS: Readonly<Record<string, readonly [command: string, ...options: string[]]>> = {
  thin_check: ['thin check'],
  thin_dump: ['thin dump'],
  thin_restore: ['thin restore', '--overwrite'],
  thin_repair: ['thin repair', '--overwrite'],
  thin_delta: ['thin delta'],
  thin_ls: ['thin ls'],
  thin_metadata_size: ['thin metadata-size'],
};

/** Of theirs, whose options these take and whose output they print: LVM asks for it. */
export const THIN_TOOLS_VERSION = '0.9.0';
