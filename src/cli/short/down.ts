import { DeviceMapper, DmError, directories } from '../../api/index.ts';
import { define } from './command.ts';

export const command = define({
  name: 'down',
  operands: '',
  summary: 'Stops the daemon: ends connections, flushes and closes every device. The next start brings them back.',
  options: { force: { help: 'even if devices are attached; those in use become dead block devices' } },
  async run({ options, io }) {
    const daemon = await DeviceMapper.connect(directories(io.env));
    try {
      const { pid } = await daemon.down({ force: options.force !== undefined });
      io.stdout.write(`the daemon (pid ${pid}) has ended\n`);
    } catch (error) {
      if (!(error instanceof DmError) || error.code !== 'DAEMON_DOWN') throw error;
      io.stdout.write('the daemon does not run\n');
    }
  },
});
