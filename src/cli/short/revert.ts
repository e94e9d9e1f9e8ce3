import { define } from './command.ts';

export const command = define({
  name: 'revert',
  operands: 'NAME',
  summary: 'Throws the changes of a fork away: it equals its origin as that is now. Connections stay.',
  help: `Whoever has cached what the fork held (a mounted file system, a running VM) must forget it:
unmount before, or reboot the VM.`,
  async run({ operands: [name], io }) {
    await (await io.control()).revert({ name });
    io.stdout.write(`${name} equals its origin again\n`);
  },
});
