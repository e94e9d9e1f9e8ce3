/**
 * The scenarios of the specification that concern what dmsetup takes and prints, by number. Those about I/O under a
 * suspend, a reload or a removal are in mapper-scenarios.test.ts. Not here: 14 (a mounted disk: test/system/mounted.test.ts).
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, expect, test } from 'vitest';
import { bytes } from '../../src/units.ts';
import { Rig } from './dmsetup-support.ts';

let rig: Rig;
const dm = (line: string) => rig.dm(line);
const ok = (line: string) => rig.ok(line);
const fails = (line: string) => rig.fails(line);
const stat = async (name: string, options = '') =>
  (await ok(`info -c --noheadings -o attr ${options} ${name}`)).trimEnd();

const failure = (operation: string, device: string, text: string) =>
  `device-mapper: ${operation} ioctl on ${device} failed: ${text}\nCommand failed.\n`;
const BUSY = 'Device or resource busy';
const INVALID = 'Invalid argument';
const GONE = 'No such device or address';
const LINEAR = "'0 1024 linear /dev/ram0 0'";

beforeEach(() => {
  rig = new Rig();
});

test('1: create a linear device', async () => {
  expect(await dm("create lin --table '0 2048 linear /dev/ram0 0'")).toEqual({ status: 0, stdout: '', stderr: '' });
  expect(await ok('ls')).toBe('lin\t(254:0)\n');
  expect(await ok('table lin')).toBe('0 2048 linear 1:0 0\n');
  expect((await rig.mapper.info({ name: 'lin' })).size).toBe(2048 * 512);
});

test('2: a name in use', async () => {
  await ok("create lin --table '0 2048 linear 1:0 0'");
  expect(await fails("create lin --table '0 8 zero'")).toBe(failure('create', 'lin ', BUSY));
  expect(await ok('table lin')).toBe('0 2048 linear 1:0 0\n');
});

test('3: a uuid in use', async () => {
  await ok('create one -u U -n');
  expect(await fails('create two -u U -n')).toBe(failure('create', 'two U', BUSY));
  expect(await ok('ls')).toBe('one\t(254:0)\n');
});

test('4: a device without a table', async () => {
  await ok('create a -n');
  const info = await ok('info a');
  expect(info).toContain('State:             ACTIVE\nTables present:    None\n');
  expect(info).toContain('Number of targets: 0\n');
  expect(info).not.toContain('Read Ahead');
  expect(await ok('table a')).toBe('\n');
  expect(await stat('a')).toBe('---w');
});

test('5: an empty table makes a device without one', async () => {
  await rig.ok('create x', { stdin: '' });
  expect(await stat('x')).toBe('---w');
});

test('6: an unknown target leaves nothing behind', async () => {
  expect(await fails("create bad --table '0 8 nosuchtarget'")).toBe(failure('reload', 'bad (254:0)', INVALID));
  expect(await ok('ls')).toBe('No devices found\n');
});

test('7: a line that is no table line', async () => {
  expect(await fails("create bad --table '0 8'")).toBe('Invalid format on line 1 of table .\nCommand failed.\n');
  expect(await ok('ls')).toBe('No devices found\n');
});

test.each(['0 8 zero\\n16 8 zero', '0 8 zero\\n4 8 zero', '8 8 zero\\n0 8 zero', '8 8 zero'])(
  '8: gaps and overlaps: %s',
  async (table) => {
    expect(await fails(`create bad --table $'${table}'`)).toBe(failure('reload', 'bad (254:0)', INVALID));
  },
);

test('9: lengths', async () => {
  for (const length of ['0', '18014398509481984', '-8'])
    expect(await fails(`create bad --table '0 ${length} zero'`)).toBe(failure('reload', 'bad (254:0)', INVALID));
  await ok("create big --table '0 18014398509481983 zero'");
  expect(await ok('table big')).toBe('0 18014398509481983 zero \n');
});

test('10: a table file with tabs, CRLF, empty lines and comments', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'dmkit-'));
  try {
    writeFileSync(join(directory, 'table'), '0\t8 zero\r\n\r\n\n# c\n8 8\tzero\n16 8 linear /dev/ram0 8 # foo\n');
    await rig.ok('create t table', { cwd: directory });
  } finally {
    rmSync(directory, { recursive: true });
  }
  expect(await ok('table t')).toBe('0 8 zero \n8 8 zero \n16 8 linear 1:0 8\n');
});

test('11: a comment begins inside a word', async () => {
  expect(await fails("create t --table '0 8 linear /dev/ram0 8 extra#x'")).toBe(
    failure('reload', 't (254:0)', INVALID),
  );
});

test('12: a table larger than the disk', async () => {
  expect(await fails("create x --table '0 131073 linear /dev/ram0 0'")).toBe(failure('reload', 'x (254:0)', INVALID));
  expect(await ok('ls')).toBe('No devices found\n');
});

test.each([
  ['/dev/nosuch', 'No such device'],
  ['99:99', GONE],
  ['9999:1', 'Value too large for defined data type'],
  ['plain', 'No such device'],
])('13: no device %s', async (device, text) => {
  expect(await fails(`create x --table '0 8 linear ${device} 0'`)).toBe(failure('reload', 'x (254:0)', text));
});

test('15: concise', async () => {
  await ok("create --concise 'c1,,,,0 8 zero;c2,U2,9,ro,0 8 linear /dev/ram0 0,8 8 zero;'");
  expect(await ok('info -c --noheadings -o name,uuid,minor,attr,segments')).toBe('c1::0:L--w:1\nc2:U2:9:L--r:2\n');
});

test('16: concise escapes', async () => {
  await ok("create --concise 'c\\,6,,,,0 8 zero'");
  expect(await ok('ls')).toBe('c,6\t(254:0)\n');
  expect(await ok('table --concise')).toBe('c\\,6,,0,rw,0 8 zero \n');
});

test('17: 300 lines', async () => {
  const lines = Array.from({ length: 300 }, (_, i) => `${i * 8} 8 linear /dev/ram0 ${i * 16}`);
  await rig.ok('create many', { stdin: `${lines.join('\n')}\n` });
  expect((await rig.mapper.info({ name: 'many' })).size).toBe(2400 * 512);
  expect((await ok('table many')).split('\n')).toHaveLength(301);
  expect(await ok('info -c --noheadings -o segments many')).toBe('300\n');
});

test('18: a name with a blank', async () => {
  await ok("create 'sp ace' -n");
  expect(await ok('ls')).toBe('sp ace\t(254:0)\n');
  expect(await ok('--manglename none ls')).toBe('sp\\x20ace\t(254:0)\n');
  expect(await ok("info 'sp ace'")).toBe(await ok("info 'sp\\x20ace'"));
});

test('19: mixed and badly mangled names', async () => {
  expect(await fails("create 'mix ed\\x20y' -n")).toBe(
    `The name "mix ed\\x20y" contains mixed mangled and unmangled characters or it's already mangled improperly.\n` +
      'Failed to mangle device name "mix ed\\x20y".\nCommand failed.\n',
  );
  await ok("create --manglename none 'raw sp' -n");
  expect(await fails('ls')).toBe(
    'The name "raw sp" should be mangled but it contains blacklisted characters.\nCommand failed.\n',
  );
  expect(await ok("mangle 'raw sp'")).toBe('raw sp: renaming to raw\\x20sp\n');
  expect(await ok('ls')).toBe('raw sp\t(254:0)\n');
});

test('20: the longest names', async () => {
  await ok(`create ${'n'.repeat(127)} -n`);
  const long = 'n'.repeat(130);
  expect(await fails(`create ${long} -n`)).toBe(`Name "${long}" too long.\nCommand failed.\n`);
  await ok(`create u -n -u ${'u'.repeat(128)}`);
  expect(await fails(`create v -n -u ${'v'.repeat(129)}`)).toContain('Mangled form of the UUID too long');
});

test('21: a minor in use, a minor alone', async () => {
  await ok('create m1 -n -j 254 -m 77');
  expect(await fails('create m2 -n -j 254 -m 77')).toBe(failure('create', 'm2 (254:77)', GONE));
  expect(await fails('create m2 -n -m 77')).toBe(
    "Please specify both major number and minor number.\nCouldn't process command line.\n",
  );
});

test('22-24: the inactive table', async () => {
  await ok('create a -n');
  await ok(`load a --table ${LINEAR}`);
  expect(await stat('a')).toBe('-I-w');
  expect(await ok('table a')).toBe('\n');
  expect(await ok('table --inactive a')).toBe('0 1024 linear 1:0 0\n');
  expect(await ok('deps --inactive a')).toBe('1 dependencies\t: (1, 0)\n');
  await ok('suspend a');
  expect(await stat('a')).toBe('-Isw');
  await ok('resume a');
  expect(await stat('a')).toBe('L--w');
  await ok("load a --table '0 2048 linear /dev/ram1 0'");
  expect(await stat('a')).toBe('LI-w');
  expect((await rig.mapper.info({ name: 'a' })).size).toBe(1024 * 512);
  expect(await ok('deps a')).toBe('1 dependencies\t: (1, 0)\n');
  await ok('resume a');
  expect((await rig.mapper.info({ name: 'a' })).size).toBe(2048 * 512);
  expect(await ok('table a')).toBe('0 2048 linear 1:1 0\n');
});

test('25: clear twice', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok("load a --table '0 8 zero'");
  await ok('clear a');
  expect(await stat('a')).toBe('L--w');
  await ok('clear a');
});

test('26: a bad table leaves live and inactive as they were', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok("load a --table '0 8 zero'");
  expect(await fails("load a --table '0 8 nosuch'")).toBe(failure('reload', 'a ', INVALID));
  expect(await stat('a')).toBe('LI-w');
  expect(await ok('table a')).toBe('0 1024 linear 1:0 0\n');
  expect(await ok('table --inactive a')).toBe('0 8 zero \n');
});

test('27: a table too large for its disk fails at resume', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok("load a --table '0 131073 linear /dev/ram0 0'");
  expect(await fails('resume a')).toBe(failure('resume', 'a ', INVALID));
  expect(await stat('a')).toBe('L-sw');
  expect(await ok('table a')).toBe('0 1024 linear 1:0 0\n');
  await ok('resume a');
  expect(await stat('a')).toBe('L--w');
});

test('28: suspend and resume without a table', async () => {
  await ok('create a -n');
  await ok('suspend a');
  expect(await fails('resume a')).toBe(failure('resume', 'a ', INVALID));
  expect(await ok('info a')).toContain('State:             SUSPENDED\n');
});

test('29: suspend and resume twice', async () => {
  await ok(`create a --table ${LINEAR}`);
  for (const command of ['suspend', 'suspend', 'resume', 'resume'])
    expect(await dm(`${command} a`)).toEqual({ status: 0, stdout: '', stderr: '' });
});

test('30: a read-only table', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok(`load -r a --table ${LINEAR}`);
  expect(await stat('a')).toBe('LI-w');
  expect(await stat('a', '--inactive')).toBe('LI-r');
  await ok('resume a');
  expect(await stat('a')).toBe('L--r');
  const device = rig.mapper.device({ name: 'a' });
  const sector = new Uint8Array(512);
  expect(() => device.write(bytes(0), sector, 0, 512)).toThrow(expect.objectContaining({ errno: 'EPERM' }));
  await device.read(bytes(0), sector, 0, 512);
});

test('31: load without a device', async () => {
  expect(await fails("load nosuch --table '0 8 zero'")).toBe(failure('reload', 'nosuch ', GONE));
});

const POOL = "'0 65536 thin-pool /dev/ram0 /dev/ram1 128 0'";

test('32: a pool stays a pool, or becomes an error', async () => {
  await ok(`create p --table ${POOL}`);
  expect(await fails("load p --table '0 8 zero'")).toBe(failure('reload', 'p ', INVALID));
  expect(await stat('p')).toBe('L--w');
  await ok("load p --table '0 8 error'");
  expect(await stat('p')).toBe('LI-w');
  await ok('clear p');
  expect(await stat('p')).toBe('L--w');
  expect(await ok('table p')).toBe('0 65536 thin-pool 1:0 1:1 128 0 0 \n');
});

test('33: error takes any arguments', async () => {
  await ok("create e --table '0 8 error foo bar'");
  expect(await ok('table e')).toBe('0 8 error \n');
});

test('34: a device cannot lie on itself', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok("create b --table '0 1024 linear /dev/mapper/a 0'");
  for (const below of ['a', 'b'])
    expect(await fails(`load a --table '0 1024 linear /dev/mapper/${below} 0'`)).toBe(failure('reload', 'a ', INVALID));
});

test('35: reads of an error target fail, the others do not', async () => {
  await ok("create a --table $'0 8 zero\\n8 8 error\\n16 8 linear /dev/ram0 0'");
  const device = rig.mapper.device({ name: 'a' });
  const read = async (sector: number, length: number) =>
    device.read(bytes(sector * 512), new Uint8Array(length), 0, length);
  await read(0, 4096);
  await read(16, 4096);
  await expect(read(8, 4096)).rejects.toMatchObject({ errno: 'EIO' });
  await expect(read(0, 3 * 4096)).rejects.toMatchObject({ errno: 'EIO' });
});

async function opened() {
  await ok(`create a --table ${LINEAR}`);
  return rig.mapper.open({ name: 'a' });
}

test('49: an open device is busy, and stays so through 25 attempts', async () => {
  await opened();
  const line = failure('remove', 'a ', BUSY).replace('Command failed.\n', '');
  expect(await fails('remove a')).toBe(`${line}Command failed.\n`);
  expect(await fails('remove --retry a')).toBe(`${line.repeat(25)}Command failed.\n`);
  expect(rig.slept).toBe(24 * 200);
});

test('49: --retry succeeds as soon as the device is closed', async () => {
  const open = await opened();
  rig.whileAsleep = () => (rig.slept === 600 ? open.close() : undefined);
  const { status, stderr } = await dm('remove --retry a');
  expect({ status, lines: stderr.split('\n').length - 1 }).toEqual({ status: 0, lines: 3 });
});

test('50: deferred removal, and its cancellation', async () => {
  const open = await opened();
  await ok('remove --deferred a');
  expect(await ok('info a')).toContain('State:             ACTIVE (DEFERRED REMOVE)\n');
  await ok('message a 0 @cancel_deferred_remove');
  expect(await ok('info a')).toContain('State:             ACTIVE\n');
  await ok('remove --deferred a');
  await open.close();
  expect(await ok('ls')).toBe('No devices found\n');
});

test('51: a stack', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok("create top --table '0 1024 linear /dev/mapper/a 0'");
  expect(await fails('remove a')).toBe(failure('remove', 'a ', BUSY));
  expect(await fails('remove nosuch a top')).toBe(failure('remove', 'nosuch ', GONE));
  expect(await ok('ls')).toBe('a\t(254:0)\ntop\t(254:1)\n');
  await ok('remove top a');
  await ok(`create a --table ${LINEAR}`);
  await ok("create top --table '0 1024 linear /dev/mapper/a 0'");
  await ok('remove_all');
  expect(await ok('ls')).toBe('No devices found\n');
});

test('52: remove --force leaves an error table on an open device', async () => {
  await opened();
  expect(await fails('remove --force a')).toBe(failure('remove', 'a ', BUSY));
  expect(await ok('table a')).toBe('0 1024 error \n');
});

test('53: remove_all --force tells what it could not remove', async () => {
  await opened();
  expect(await dm('remove_all --force')).toEqual({
    status: 0,
    stdout: '',
    stderr: 'Unable to remove 1 device(s).\n',
  });
});

test('54: a suspended, closed device', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok('suspend a');
  await ok('remove a');
});

test('55: a suspended device with a waiting reader', async () => {
  const open = await opened();
  await ok('suspend a');
  const waiting = Promise.resolve(open.device.read(bytes(0), new Uint8Array(512), 0, 512));
  const outcome = expect(waiting).rejects.toMatchObject({ errno: 'EIO' });
  expect(await fails('remove -f a')).toBe(failure('remove', 'a ', BUSY));
  await outcome;
  expect(await ok('table a')).toBe('0 1024 error \n');
  await open.close();
  await ok('remove a');
});

test('56: an inactive table holds what it names', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok("create b --table '0 8 linear /dev/ram2 0'");
  await ok("load b --table '0 8 linear /dev/mapper/a 0'");
  const open = () => ok('info -c --noheadings -o open a');
  expect(await open()).toBe('1\n');
  await ok('clear b');
  expect(await open()).toBe('0\n');
  await ok("load b --table '0 8 linear /dev/mapper/a 0'");
  await ok('resume b');
  await ok("load b --table '0 8 linear /dev/mapper/a 8'");
  expect(await open()).toBe('1\n');
});

test('57: remove without arguments', async () => {
  expect(await fails('remove')).toBe('No device specified.\nCommand failed.\n');
});

test('58: rename', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok('create b -n');
  expect(await fails('rename a b')).toBe(failure('rename', 'a ', BUSY));
  await ok('rename a c');
  expect(await ok('info -c --noheadings -o name,devno,events')).toBe('b:254:1:0\nc:254:0:1\n');
  expect(await fails('rename nosuch d')).toBe(failure('rename', 'nosuch ', GONE));
});

test('59: a uuid is set once', async () => {
  await ok(`create c --table ${LINEAR}`);
  await ok('rename c --setuuid UC');
  expect(await ok('info -c --noheadings -o uuid,events c')).toBe('UC:1\n');
  expect(await fails('rename c --setuuid UD')).toBe(failure('rename', 'c ', INVALID));
});

test('60: names that cannot be', async () => {
  await ok('create c -n');
  expect(await fails('rename c x/y')).toBe('Name "x/y" invalid. It contains "/".\nCommand failed.\n');
  expect(await fails("rename c ''")).toBe('Non empty new name is required.\nCommand failed.\n');
});

test('61: wait ends at a rename, and at once for another number', async () => {
  await ok(`create a --table ${LINEAR}`);
  expect(await ok('wait a 7')).toBe('');
  const waiting = dm('wait a 0');
  await ok('rename a b');
  expect(await waiting).toEqual({ status: 0, stdout: '', stderr: '' });
});

test('61: wait ends when interrupted', async () => {
  await ok(`create a --table ${LINEAR}`);
  const interrupt = new AbortController();
  const waiting = rig.dm('wait a 0', { signal: interrupt.signal });
  interrupt.abort();
  expect(await waiting).toEqual({ status: 1, stdout: '', stderr: 'Command failed.\n' });
});

test('62: wait ends at a removal', async () => {
  await ok(`create w --table ${LINEAR}`);
  const waiting = dm('wait w 0');
  await ok('remove w');
  expect(await waiting).toEqual({ status: 0, stdout: '', stderr: '' });
});

test('63: suspend, load and resume are no events', async () => {
  await ok(`create a --table ${LINEAR}`);
  await ok('suspend a');
  await ok("load a --table '0 8 zero'");
  await ok('resume a');
  expect(await ok('info -c --noheadings -o events a')).toBe('0\n');
});

test('64, 66: messages that nobody takes', async () => {
  await ok(`create a --table ${LINEAR}`);
  expect(await fails('message a 0 hello')).toBe(failure('message', 'a ', INVALID));
  expect(await fails('message a x hello')).toBe('Invalid sector.\nCommand failed.\n');
  expect(await fails('message a 0')).toBe(`No message supplied.\n${failure('message', 'a ', INVALID)}`);
  expect(await fails('message a 4096 hello')).toBe(failure('message', 'a ', INVALID));
  expect(await fails('message a 0 @foo')).toBe(failure('message', 'a ', INVALID));
});

test.each(['ls', 'ls --tree', 'info', 'info -c', 'table', 'status', 'deps'])('67: %s without devices', async (line) => {
  expect(await dm(line)).toEqual({ status: 0, stdout: 'No devices found\n', stderr: '' });
});

test.each(['mknodes', 'remove_all'])('67: %s without devices', async (line) => {
  expect(await dm(line)).toEqual({ status: 0, stdout: '', stderr: '' });
});

test('68: lists are in order of the name', async () => {
  for (const name of ['z', 'b', 'a']) await ok(`create ${name} -n`);
  expect(await ok('ls')).toBe('a\t(254:2)\nb\t(254:1)\nz\t(254:0)\n');
  expect(await ok('info -c --noheadings -o name')).toBe('a\nb\nz\n');
});

/** two: on A and B; lin: on A. */
async function twoAndLin() {
  await ok("create lin --table '0 2048 linear /dev/ram0 0'");
  await ok("create two -u LVM-abc --table $'0 1024 linear /dev/ram0 0\\n1024 1024 linear /dev/ram1 64'");
}

test('69: deps', async () => {
  await twoAndLin();
  expect(await ok('deps two')).toBe('2 dependencies\t: (1, 1) (1, 0)\n');
});

test('70: ls --target', async () => {
  await twoAndLin();
  expect(await ok('ls --target linear')).toBe('lin\t(254, 0)\ntwo\t(254, 1)\n');
  expect(await ok('ls')).toBe('lin\t(254:0)\ntwo\t(254:1)\n');
  expect(await ok('ls --target nosuch')).toBe('');
});

test('71: names in front of lines', async () => {
  await twoAndLin();
  expect(await ok('table two lin')).toBe(
    'two: 0 1024 linear 1:0 0\ntwo: 1024 1024 linear 1:1 64\nlin: 0 2048 linear 1:0 0\n',
  );
  expect(await ok('table two')).toBe('0 1024 linear 1:0 0\n1024 1024 linear 1:1 64\n');
});

test('72: the first failure ends it', async () => {
  await twoAndLin();
  const { status, stdout, stderr } = await dm('info two nosuch lin');
  expect({ status, stderr }).toEqual({ status: 1, stderr: 'Device does not exist.\nCommand failed.\n' });
  expect(stdout.match(/^Name: .*/gm)).toEqual(['Name:              two']);
});

test('73, 76: selected rows, columns as wide as they must be', async () => {
  const long = 'f'.repeat(20);
  await ok(`create ${long} -n -u ${'u'.repeat(40)}`);
  await ok('create g -n');
  expect(await ok("info -c -S 'name=~^f' -o name")).toBe(`${'Name'.padEnd(20)}\n${long}\n`);
  expect(await ok("info -c -S 'name=x' -o name")).toBe('');
  const lines = (await ok('info -c')).trimEnd().split('\n');
  expect(lines[0]).toBe(`${'Name'.padEnd(20)} Maj Min Stat Open Targ Event  ${'UUID'.padEnd(40)}`);
  expect(lines[1].indexOf(' 254 ')).toBe(20);
});

test('74: shell assignments', async () => {
  await ok('create a -n');
  await ok('create b -n -u U1');
  const options = `--separator ';' --nameprefixes --unquoted --sort open,name -S 'name=~a || uuid=~U' --mangle none`;
  expect(await ok(`info -c --noheadings -o name,open ${options}`)).toBe('DM_NAME=a;DM_OPEN=0\nDM_NAME=b;DM_OPEN=0\n');
});

test('75: one more column', async () => {
  await twoAndLin();
  const [heading, row] = (await ok('info -c -o +devno two')).split('\n');
  expect(heading.endsWith(' DevNo')).toBe(true);
  expect(row).toBe(`two              254   1 L--w    0    2      0 ${'LVM-abc'.padEnd(32)} 254:1`);
});

test('77: suspend what is selected', async () => {
  await ok('create x1 -n');
  await ok('create x2 -n');
  expect(await dm("suspend -S 'name=x1'")).toEqual({ status: 0, stdout: '', stderr: '' });
  expect([await stat('x1'), await stat('x2')]).toEqual(['--sw', '---w']);
});

test('78: a tree with a shared bottom', async () => {
  await ok(`create bottom --table ${LINEAR}`);
  await ok("create left --table '0 8 linear /dev/mapper/bottom 0'");
  await ok("create right --table '0 8 linear /dev/mapper/bottom 8'");
  await ok("create top --table $'0 8 linear /dev/mapper/left 0\\n8 8 linear /dev/mapper/right 0'");
  expect(await ok('ls --tree')).toBe(
    'top (254:3)\n' +
      ' |-right (254:2)\n |  `-bottom (254:0)\n |     `- (1:0)\n' +
      ' `-left (254:1)\n    `-bottom (254:0)\n       `- (1:0)\n',
  );
});

test('79: splitname', async () => {
  expect(await ok('splitname vg--a-lv--b-layer')).toBe('VG   LV   LVLayer\nvg-a lv-b layer  \n');
  expect(rig.asked).toBe(0);
});

test('80: status -v', async () => {
  await twoAndLin();
  expect(await ok('status -v two')).toBe(`${await ok('info two')}0 1024 linear \n1024 1024 linear \n`);
});

const SECTORS_8 = 4096;
const letters = async (name: string, count = 6) => {
  const into = Buffer.alloc(512);
  await rig.mapper.device({ name }).read(bytes(0), into, 0, into.length);
  return into.toString('latin1', 0, count);
};
const put = async (name: string, text: string, at = 0) => {
  const data = Buffer.alloc(SECTORS_8, text);
  await rig.mapper.device({ name }).write(bytes(at), data, 0, data.length);
};
const EIO = expect.objectContaining({ errno: 'EIO' });

test('38: a suspend does not wait for what a delay target holds', async () => {
  await ok("create dl --table '0 2048 delay /dev/ram0 0 4000000'");
  const into = Buffer.alloc(512);
  const reading = rig.mapper.device({ name: 'dl' }).read(bytes(0), into, 0, 512);
  expect(await ok('status dl')).toBe('0 2048 delay 1 0 0\n');
  await ok('suspend dl');
  await reading;
  expect(await ok('status dl')).toBe('0 2048 delay 0 0 0\n');
});

test('65: a message goes to the target at its sector', async () => {
  await ok("create lw --table $'0 1024 linear /dev/ram0 0\\n1024 1024 log-writes /dev/ram0 /dev/ram1'");
  await ok('message lw 1024 mark a');
  expect(await ok('status lw')).toBe('0 1024 linear \n1024 1024 log-writes 1 1\n');
  expect(await fails('message lw 0 mark b')).toBe(failure('message', 'lw ', INVALID));
  expect(await fails('message lw 1024 mark')).toBe(failure('message', 'lw ', INVALID));
});

test('81: flakey, down', async () => {
  await ok("create fl --table '0 1000 flakey /dev/ram0 0 0 1000'");
  await expect(letters('fl')).rejects.toThrow(EIO);
  await expect(put('fl', 'new')).rejects.toThrow(EIO);
  rig.a.write(bytes(0), Buffer.alloc(512, 'old...'), 0, 512);
  await ok("load fl --table '0 1000 flakey /dev/ram0 0 0 1000 1 drop_writes'");
  await ok('resume fl');
  await put('fl', 'new');
  expect(await letters('fl')).toBe('old...');
  await ok("load fl --table '0 1000 flakey /dev/ram0 0 0 1000 1 error_writes'");
  await ok('resume fl');
  await expect(put('fl', 'new')).rejects.toThrow(EIO);
  expect(await letters('fl')).toBe('old...');
});

test('82: flakey changes a byte of what is read or written', async () => {
  await ok("create fl --table '0 2048 flakey /dev/ram0 0 0 1000 5 corrupt_bio_byte 3 r 65 0'");
  rig.a.write(bytes(0), Buffer.alloc(512, 'abcdef'), 0, 512);
  expect(await letters('fl')).toBe('abAdef');
  await ok("load fl --table '0 2048 flakey /dev/ram0 0 0 1000 5 corrupt_bio_byte 3 w 66 0'");
  await ok('resume fl');
  await put('fl', 'abcdef');
  expect(await letters('fl')).toBe('abBdef');
});

test('83: features in any case, printed in lower', async () => {
  await ok("create fl --table '0 2048 flakey /dev/ram0 0 1 2 1 DROP_WRITES'");
  expect(await ok('table fl')).toBe('0 2048 flakey 1:0 0 1 2 1 drop_writes \n');
  expect(await ok('status fl')).toBe('0 2048 flakey \n');
});

test('84: a write that is delayed is counted', async () => {
  await ok("create dl --table '0 2048 delay /dev/ram0 0 0 /dev/ram0 0 3000000'");
  const writing = put('dl', 'x');
  expect(await ok('status dl')).toBe('0 2048 delay 0 1 0\n');
  expect(await ok('table dl')).toBe('0 2048 delay 1:0 0 0 1:0 0 3000000\n');
  await ok('suspend dl');
  await writing;
});

test('85: log-writes, step by step (a write with FUA is a write and a flush here)', async () => {
  await ok("create lw --table '0 2048 log-writes /dev/ram0 /dev/ram1'");
  const lw = rig.mapper.device({ name: 'lw' });
  const status = async () => (await ok('status lw')).replace('0 2048 log-writes ', '').trimEnd();
  const steps: string[] = [];
  await put('lw', 'a');
  steps.push(await status());
  await lw.flush();
  steps.push(await status());
  await ok('message lw 0 mark m1');
  steps.push(await status());
  await put('lw', 'b', 4096);
  await lw.flush();
  steps.push(await status());
  await lw.discard(bytes(8192), 4096);
  steps.push(await status());
  await lw.flush();
  steps.push(await status());
  expect(steps).toEqual(['0 0', '2 10', '3 11', '5 21', '5 21', '7 23']);
  await ok('remove lw');
  const log = Buffer.alloc(13 * 1024);
  rig.b.read(bytes(0), log, 0, log.length);
  const fields = (at: number, count: number) =>
    Array.from({ length: count }, (_, index) => Number(log.readBigUInt64LE(at + 8 * index)));
  expect(fields(8, 3)).toEqual([1, 8, 512]);
  expect([512, 5120, 5632, 6144, 10752, 11264, 11776, 12288].map((at) => fields(at, 4))).toEqual([
    [0, 8, 0, 0],
    [0, 0, 1, 0],
    [0, 0, 8, 2],
    [8, 8, 0, 0],
    [0, 0, 1, 0],
    [16, 8, 4, 0],
    [0, 0, 1, 0],
    [0, 0, 8, 17],
  ]);
  expect(log.toString('latin1', 5664, 5666)).toBe('m1');
  expect(log.toString('latin1', 12320, 12337)).toBe('dm-log-writes-end');
  expect([log[1024], log[6656]].map((byte) => String.fromCharCode(byte))).toEqual(['a', 'b']);
});

test('86: a full log switches logging off, and nothing else', async () => {
  rig.disks.ram(3, 20);
  await ok("create lw --table '0 2048 log-writes /dev/ram0 /dev/ram3'");
  const lw = rig.mapper.device({ name: 'lw' });
  for (const letter of ['a', 'b', 'c']) {
    await put('lw', letter);
    await lw.flush();
  }
  expect(await ok('status lw')).toMatch(/^0 2048 log-writes 2 \d+ logging_disabled\n$/);
  expect(await letters('lw', 1)).toBe('c');
});

/** `base` is the origin of `snap`, which shows something else at sector 8; both are suspended, a merge table loaded. */
async function aboutToMerge(): Promise<void> {
  await ok("create base --table '0 1024 snapshot-origin /dev/ram0'");
  await ok("create snap --table '0 1024 snapshot /dev/ram0 /dev/ram1 P 8'");
  await rig.mapper.device({ name: 'snap' }).write(bytes(8 * 512), new Uint8Array(512).fill(7), 0, 512);
  await ok('suspend base snap');
  await ok("load base --table '0 1024 snapshot-merge /dev/ram0 /dev/ram1 P 8'");
}

async function byteOf(name: string): Promise<number> {
  const sector = new Uint8Array(512);
  await rig.mapper.device({ name }).read(bytes(8 * 512), sector, 0, 512);
  return sector[0];
}

test('87: the origin resumed first takes the snapshot over and merges it', async () => {
  await aboutToMerge();
  expect(await fails('resume snap')).toBe(failure('resume', 'snap ', INVALID));
  expect(await ok('status base --inactive')).toBe('0 1024 snapshot-merge 0/131072 0\n');
  await ok('resume base');
  while ((await ok('status base')) !== '0 1024 snapshot-merge 16/131072 16\n')
    await new Promise((resolve) => setImmediate(resolve));
  await ok('resume snap');
  expect(await ok('status snap')).toBe('0 1024 snapshot Invalid\n');
  await expect(byteOf('snap')).rejects.toMatchObject({ errno: 'EIO' });
  expect(await byteOf('base')).toBe(7);
});

test('88: the snapshot removed before leaves the merge nothing to take over', async () => {
  await aboutToMerge();
  await ok('remove snap');
  await ok('resume base');
  expect(await ok('status base')).toBe('0 1024 snapshot-merge Invalid\n');
  expect(await byteOf('base')).toBe(0);
});

test('89: a suspended pool takes messages, and no new tables over it', async () => {
  await ok(`create pool --table ${POOL}`);
  await ok("message pool 0 'create_thin 0'");
  await ok("create thin0 --table '0 1024 thin /dev/mapper/pool 0'");
  await ok('suspend pool');
  expect(await stat('thin0')).toBe('L--w');
  await ok('message pool 0 create_thin 8');
  expect(await fails("create thin8 --table '0 1024 thin /dev/mapper/pool 8'")).toBe(
    failure('reload', 'thin8 (254:2)', INVALID),
  );
  await ok('resume pool');
  await ok("create thin8 --table '0 1024 thin /dev/mapper/pool 8'");
});

test('90: what a pool refuses', async () => {
  await ok(`create pool --table ${POOL}`);
  await ok("message pool 0 'create_thin 0'");
  expect(await fails("message pool 0 'create_thin 0'")).toBe(failure('message', 'pool ', 'File exists'));
  expect(await fails("message pool 0 'delete 9'")).toBe(failure('message', 'pool ', 'No data available'));
  await ok("create thin0 --table '0 1024 thin /dev/mapper/pool 0'");
  expect(await fails("message pool 0 'delete 0'")).toBe(failure('message', 'pool ', BUSY));
  await ok('remove thin0');
  await ok("message pool 0 'delete 0'");
});
