/** `info -c` and splitname as reports, and `-S` on the commands that are none. */
import type { DeviceInfo } from '../../api/index.ts';
import { type Column, findField, withFieldHelp } from '../report/field.ts';
import { parseReportColumns, parseSortKeys, Report } from '../report/report.ts';
import { parseSelection, type Selection } from '../report/select.ts';
import { deviceRow, GROUPS, INFO_DEFAULT, type Row, SPLITNAME_DEFAULT } from './info-fields.ts';
import type { Session } from './session.ts';
import { splitName } from './split-name.ts';
import { isStatistic } from './statistics-fields.ts';

/** `-S`, or undefined without. */
export function selectionOf(session: Session): Selection<Row> | 'help' | undefined {
  const text = session.options.value('select');
  if (!text) return undefined;
  return parseSelection(text, GROUPS, (help) => session.printError(help));
}

export class DeviceReport {
  readonly #session: Session;
  readonly #report: Report<Row>;
  readonly #needsRegions: boolean;

  private constructor(session: Session, report: Report<Row>, needsRegions: boolean) {
    this.#session = session;
    this.#report = report;
    this.#needsRegions = needsRegions;
  }

  /** What -o, -O, -S and the layout options ask for; `help` when one of them asked for help, which is printed. */
  static from(session: Session, kind: 'info' | 'splitname'): DeviceReport | 'help' {
    const { options } = session;
    const print = (text: string) => session.printError(text);
    const standard = kind === 'info' ? INFO_DEFAULT : SPLITNAME_DEFAULT;
    const columns = withFieldHelp<Row, Column<Row>[]>(GROUPS, print, '', () =>
      parseReportColumns(options.value('options'), standard, GROUPS),
    );
    if (columns === 'help') return 'help';
    const keys = withFieldHelp(GROUPS, print, 'dm_report: ', () => parseSortKeys(options.value('sort') ?? '', GROUPS));
    if (keys === 'help') return 'help';
    const selection = selectionOf(session);
    if (selection === 'help') return 'help';
    const headings = !options.has('noheadings');
    const separator = options.value('separator');
    const prefix = options.has('nameprefixes') ? 'DM_' : undefined;
    const report = new Report<Row>(
      columns,
      {
        headings,
        aligned: headings && separator === undefined && prefix === undefined,
        separator: separator ?? (headings ? ' ' : ':'),
        prefix,
        quoted: !options.has('unquoted'),
        columnsAsRows: options.has('rows'),
      },
      (text) => session.print(text),
      keys,
      selection,
    );
    const selected = [...(options.value('select') ?? '').matchAll(/\w+/g)].map(([word]) => findField(word, GROUPS));
    const used = [...columns, ...keys.map(({ field }) => field), ...selected];
    return new DeviceReport(session, report, used.some(isStatistic));
  }

  addDevice(info: DeviceInfo, devices: ReadonlyMap<string, DeviceInfo>): void {
    if (!this.#needsRegions) this.#report.add(deviceRow(this.#session, info, devices));
  }

  addName(name: string, subsystem: string): void {
    const row = { session: this.#session, devices: new Map(), lvm: { subsystem, ...splitName(name, subsystem) } };
    if (!this.#needsRegions) this.#report.add(row);
  }

  output(): void {
    this.#report.output();
  }
}
