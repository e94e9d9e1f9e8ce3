/** Rows as a Markdown table, which a terminal shows well enough too. */
import { cpus, release } from 'node:os';
import { contestants, type Options, type Row, sides } from './beside-others.ts';

export interface Machine {
  date: string;
  cpu: string;
  cores: number;
  kernel: string;
  node: string;
  versions: Record<string, string>;
}

export const machine = (): Machine => ({
  date: new Date().toISOString().slice(0, 10),
  cpu: cpus()[0].model.trim(),
  cores: cpus().length,
  kernel: release().split('.').slice(0, 2).join('.'),
  node: process.version,
  versions: Object.fromEntries(contestants.map(({ name, version }) => [name, version()])),
});

export function describe(on: Machine): string {
  const versions = Object.entries(on.versions).map(([name, version]) => `${name} ${version}`);
  return `${on.cpu}, ${on.cores} cores, Linux ${on.kernel}, Node ${on.node}; ${versions.join(', ')}.`;
}

export function markdown(rows: readonly Row[], options: Options, on: Machine): string {
  return [
    describe(on),
    `Image of ${options.imageSize / 2 ** 20} MiB in ${options.folder}; median of ${options.runs} runs of ${options.seconds} s. Date: ${on.date}.`,
    ...sides.flatMap((side) => ['', `**${side}**`, '', ...table(rows.filter((row) => row.side === side))]),
    '',
    'In brackets: dmkit compared to that program (2.00 is twice as fast). p99 is the latency of dmkit.',
    ...sides.flatMap((side) => [
      '',
      ...contestants.map(({ name, describe }) => `- ${side}, ${name}: ${describe(side)}`),
    ]),
    '',
  ].join('\n');
}

function table(rows: readonly Row[]): string[] {
  const head = ['workload', ...contestants.map(({ name }) => name), 'p99'];
  const body = rows.map(({ workload, figures }) => {
    const [own] = figures;
    const shown = figures.map((figure, i) => {
      const ratio = i === 0 ? '' : ` (${(own.iops / figure.iops).toFixed(2)})`;
      return `${speed(figure, workload.blockSize)}${ratio}`;
    });
    return [workload.title, ...shown, `${Math.round(own.p99)} µs`];
  });
  return grid(head, body);
}

/** The lines of a table; all but its first column are aligned to the right. */
export function grid(head: readonly string[], body: readonly string[][]): string[] {
  const widths = head.map((_, i) => Math.max(...[head, ...body].map((cells) => cells[i].length)));
  const line = (cells: readonly string[]) => `| ${cells.map((cell, i) => pad(cell, widths[i], i > 0)).join(' | ')} |`;
  return [
    line(head),
    line(widths.map((width, i) => (i > 0 ? `${'-'.repeat(width - 1)}:` : '-'.repeat(width)))),
    ...body.map(line),
  ];
}

const pad = (text: string, width: number, right: boolean) => (right ? text.padStart(width) : text.padEnd(width));

const speed = ({ iops, bandwidth }: { iops: number; bandwidth: number }, blockSize: number) =>
  blockSize >= 65536 ? `${Math.round(bandwidth / 2 ** 20)} MiB/s` : `${Math.round(iops).toLocaleString('en')} IOPS`;
