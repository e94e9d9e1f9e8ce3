/**
 * Rows in columns, as libdevmapper lays them out: aligned with blanks, or with a separator, or as shell assignments,
 * or turned by 90 degrees.
 */
import { type Column, type FieldGroup, findField, parseColumns, SELECTED, splitList, UnknownField } from './field.ts';
import type { Selection } from './select.ts';

export interface ReportOptions {
  readonly headings: boolean;
  /** Pads every column, the last one too, to its widest cell. */
  readonly aligned: boolean;
  readonly separator: string;
  /** `DM_` makes every cell `DM_NAME='value'`. */
  readonly prefix?: string;
  readonly quoted: boolean;
  /** One line per column. */
  readonly columnsAsRows: boolean;
}

export interface SortKey<Row> {
  readonly field: Column<Row>;
  readonly descending: boolean;
}

/** `-O name,-size`. Throws UnknownField. */
export function parseSortKeys<Row>(list: string, groups: readonly FieldGroup<Row>[]): SortKey<Row>[] {
  return splitList(list).map((key) => {
    const name = key.replace(/^[-+]/, '');
    const field = findField(name, groups);
    if (!field) throw new UnknownField(name);
    return { field, descending: key.startsWith('-') };
  });
}

/** `-o LIST`; a leading `+` appends to the default. Throws UnknownField or FieldHelp. */
export function parseReportColumns<Row>(
  list: string | undefined,
  standard: string,
  groups: readonly FieldGroup<Row>[],
): Column<Row>[] {
  if (list === undefined) return parseColumns(standard, groups);
  if (!list.startsWith('+')) return parseColumns(list, groups);
  return parseColumns(`${standard},${list.slice(1)}`, groups);
}

interface AddedRow<Row> {
  readonly row: Row;
  readonly selected: boolean;
  readonly cells: string[];
}

export class Report<Row> {
  readonly #columns: readonly Column<Row>[];
  readonly #options: ReportOptions;
  readonly #keys: readonly SortKey<Row>[];
  readonly #selection: Selection<Row> | undefined;
  readonly #print: (text: string) => void;
  #rows: AddedRow<Row>[] = [];

  constructor(
    columns: readonly Column<Row>[],
    options: ReportOptions,
    print: (text: string) => void,
    keys: readonly SortKey<Row>[] = [],
    selection?: Selection<Row>,
  ) {
    this.#columns = columns;
    this.#options = options;
    this.#print = print;
    this.#keys = keys;
    this.#selection = selection;
  }

  add(row: Row): void {
    const selected = this.#selection ? this.#selection(row) : true;
    if (!selected && !this.#columns.includes(SELECTED)) return;
    const cells = this.#columns.map((column) =>
      column === SELECTED ? (selected ? '1' : '0') : String(column.value(row)),
    );
    this.#rows.push({ row, selected, cells });
  }

  /** Prints what was added since the last time, sorted. Without rows nothing is printed, not even headings. */
  output(): void {
    const rows = this.#rows;
    this.#rows = [];
    if (rows.length === 0) return;
    if (this.#keys.length > 0) rows.sort((a, b) => this.#compare(a, b));
    const lines = rows.map(({ cells }) => cells);
    if (this.#options.columnsAsRows) this.#printTurned(lines);
    else this.#printLines(lines);
  }

  #compare(a: AddedRow<Row>, b: AddedRow<Row>): number {
    for (const { field, descending } of this.#keys) {
      const [x, y] = [a, b].map(({ row, selected }) => (field === SELECTED ? Number(selected) : field.value(row)));
      const order =
        typeOf(field) === 'number' ? Number(x) - Number(y) : Buffer.compare(Buffer.from(`${x}`), Buffer.from(`${y}`));
      if (order !== 0) return descending ? -order : order;
    }
    return 0;
  }

  #widths(lines: readonly string[][]): number[] {
    return this.#columns.map((column, i) => {
      const least = column === SELECTED ? 0 : column.width;
      let width = Math.max(least, Buffer.byteLength(heading(column)));
      for (const cells of lines) width = Math.max(width, Buffer.byteLength(cells[i]));
      return width;
    });
  }

  #printLines(lines: readonly string[][]): void {
    const widths = this.#widths(lines);
    const { aligned, separator } = this.#options;
    let text = '';
    if (this.#options.headings) {
      const cells = this.#columns.map((column, i) => (aligned ? pad(heading(column), widths[i]) : heading(column)));
      text += `${cells.join(separator)}\n`;
    }
    for (const cells of lines) {
      const shown = cells.map((cell, i) => {
        if (!aligned) return this.#cell(i, cell);
        return pad(cell, widths[i], typeOf(this.#columns[i]) === 'number');
      });
      text += `${shown.join(separator)}\n`;
    }
    this.#print(text);
  }

  #printTurned(lines: readonly string[][]): void {
    const { headings, separator } = this.#options;
    this.#print(
      this.#columns
        .map((column, i) => {
          const cells = lines.map((line) => this.#cell(i, line[i]));
          return `${(headings ? [heading(column), ...cells] : cells).join(separator)}\n`;
        })
        .join(''),
    );
  }

  #cell(i: number, value: string): string {
    const { prefix, quoted } = this.#options;
    if (prefix === undefined) return value;
    const column = this.#columns[i];
    const name = `${prefix}${column === SELECTED ? SELECTED : column.id}`.toUpperCase();
    return quoted ? `${name}='${value}'` : `${name}=${value}`;
  }
}

const heading = <Row>(column: Column<Row>) => (column === SELECTED ? 'Selected' : column.heading);
const typeOf = <Row>(column: Column<Row>) => (column === SELECTED ? 'number' : column.type);

/** Pads to a width in bytes, as C does. */
function pad(text: string, width: number, right = false): string {
  const blanks = ' '.repeat(Math.max(0, width - Buffer.byteLength(text)));
  return right ? blanks + text : text + blanks;
}
