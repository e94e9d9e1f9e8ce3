/** Results as a Markdown table, which a terminal shows well enough too. */
import { readFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import type { Row } from './rows.ts';
import type { Line, Options, Result } from './table.ts';

export interface Machine {
  date: string;
  cpu: string;
  cores: number;
  kernel: string;
  node: string;
  versions: string[];
}

export function machine(rows: readonly Row[]): Machine {
  const contestants = rows.flatMap(({ entrants }) => entrants.map(({ contestant }) => contestant));
  const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
  return {
    date: new Date().toISOString().slice(0, 10),
    cpu: cpus()[0].model.trim(),
    cores: cpus().length,
    kernel: release().split('.').slice(0, 2).join('.'),
    node: process.version,
    versions: [`dmkit ${version}`, ...new Set([...new Set(contestants)].flatMap(({ version }) => version?.() ?? []))],
  };
}

export const describe = ({ cpu, cores, kernel, node, versions, date }: Machine) =>
  `${cpu}, ${cores} cores, Linux ${kernel}, Node ${node}; ${versions.join(', ')}. Date: ${date}.`;

/** What is said of a line beside its figures. */
export interface Verdict {
  ratio?: number;
  goal?: string;
  met?: boolean;
}

export function verdicts({ row, lines }: Result): Verdict[] {
  const score = (line: Line) => (row.figure === 'cpu' ? 1 / line.cpu : line[row.figure]);
  return lines.map((line, i) => {
    const { atLeast } = row.entrants[i];
    if (i === 0) return row.compare === 'others' ? tail(row, lines) : {};
    const ratio = row.compare === 'others' ? score(lines[0]) / score(line) : score(line) / score(lines[0]);
    return atLeast === undefined ? { ratio } : { ratio, goal: `≥ ${atLeast}`, met: ratio >= atLeast };
  });
}

/** No peer has a better p99.9. */
function tail(row: Row, lines: readonly Line[]): Verdict {
  const peers = lines.filter((_, i) => {
    const { atLeast, contestant } = row.entrants[i];
    return atLeast !== undefined && contestant.copiesOnWrite && contestant.version;
  });
  const best = Math.min(...peers.map(({ p999 }) => p999));
  return { goal: `p99.9 ≤ ${Math.round(best)} µs`, met: lines[0].p999 <= best };
}

export function markdown(results: readonly Result[], { runs, seconds, folders }: Options): string {
  const head = ['workload', '', 'figure', 'p99', 'p99.9', 'CPU', 'ratio', 'goal', 'met'];
  const body = results.flatMap((result) => {
    const said = verdicts(result);
    return result.lines.map((line, i) => {
      const { ratio, goal = '', met } = said[i];
      return [
        i === 0 ? result.row.workload : '',
        line.name,
        figure(result.row, line),
        micros(line.p99),
        micros(line.p999),
        line.cpu > 0 ? `${line.cpu.toFixed(1)} µs` : '',
        ratio === undefined ? '' : ratio.toFixed(2),
        goal,
        yesOrNo(met),
      ];
    });
  });
  return [
    ...grid(head, body),
    '',
    `Median of ${runs} runs, of ${seconds} s where the amount is not fixed. Commits and first writes to an origin in ${folders.disk}, all else in ${folders.memory}.`,
    'CPU: of the server, for each request. Ratio: dmkit compared to that line, or the line to the first.',
    '',
    ...[...new Set(results.flatMap(({ row }) => row.entrants.map(({ contestant }) => contestant.describe)))].map(
      (describe) => `- ${describe}`,
    ),
    '',
  ].join('\n');
}

const figure = ({ figure }: Row, { iops, bandwidth }: Line) =>
  figure === 'bandwidth' ? `${Math.round(bandwidth / 2 ** 20)} MiB/s` : `${Math.round(iops).toLocaleString('en')} IOPS`;

const micros = (value: number) => `${Math.round(value).toLocaleString('en')} µs`;

export const yesOrNo = (met?: boolean) => (met === undefined ? '' : met ? 'yes' : '**no**');

/** The lines of a table; all but its first column are aligned to the right. */
export function grid(head: readonly string[], body: readonly string[][]): string[] {
  const widths = head.map((_, i) => Math.max(3, ...[head, ...body].map((cells) => cells[i].length)));
  const line = (cells: readonly string[]) => `| ${cells.map((cell, i) => pad(cell, widths[i], i > 0)).join(' | ')} |`;
  return [
    line(head),
    line(widths.map((width, i) => (i > 0 ? `${'-'.repeat(width - 1)}:` : '-'.repeat(width)))),
    ...body.map(line),
  ];
}

const pad = (text: string, width: number, right: boolean) => (right ? text.padStart(width) : text.padEnd(width));
