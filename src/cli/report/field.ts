/** What a report can show of a row: the fields that `-o`, `-O` and `-S` name, in groups as the help lists them. */
import { CommandFailure } from '../failure.ts';

export interface Field<Row> {
  /** As typed after -o; case and underscores do not matter when it is looked up. */
  readonly id: string;
  readonly heading: string;
  /** Least width of the column. */
  readonly width: number;
  /** Strings stand left, numbers right, and each sorts its way. */
  readonly type: 'string' | 'number';
  readonly description: string;
  value(row: Row): string | number;
}

export interface FieldGroup<Row> {
  /** Heading in the help. */
  readonly title: string;
  /** `info` makes `-o info_all` stand for the fields of this group. */
  readonly prefix: string;
  readonly fields: readonly Field<Row>[];
}

/** A column that every report has: whether the row passed the selection. Showing it shows the other rows too. */
export const SELECTED = 'selected';

export type Column<Row> = Field<Row> | typeof SELECTED;

const plain = (name: string) => name.toLowerCase().replaceAll('_', '');

/** Undefined for a name that is no field. */
export function findField<Row>(name: string, groups: readonly FieldGroup<Row>[]): Column<Row> | undefined {
  const wanted = plain(name);
  if (wanted === SELECTED) return SELECTED;
  for (const group of groups) for (const field of group.fields) if (plain(field.id) === wanted) return field;
  return undefined;
}

/** Several commas count as one; what follows a last one is a field without a name, which nobody has. */
export function splitList(list: string): string[] {
  const names = list.split(',');
  if (list.endsWith(',')) throw new UnknownField('');
  return names.filter((name) => name !== '');
}

/** A comma-separated list of fields and `…_all` groups. Throws 'help' or the name that is unknown. */
export function parseColumns<Row>(list: string, groups: readonly FieldGroup<Row>[]): Column<Row>[] {
  const columns: Column<Row>[] = [];
  for (const name of splitList(list)) {
    if (name === 'help' || name === '?') throw new FieldHelp();
    const found = findField(name, groups);
    const wanted = plain(name);
    if (found) columns.push(found);
    else if (wanted === 'all') columns.push(...groups.flatMap((group) => group.fields));
    else {
      const group = groups.filter((candidate) => wanted === `${plain(candidate.prefix)}all`);
      if (group.length === 0) throw new UnknownField(name);
      columns.push(...group.flatMap((candidate) => candidate.fields));
    }
  }
  return columns;
}

export class FieldHelp extends Error {}

export class UnknownField extends Error {
  readonly field: string;
  constructor(field: string) {
    super(field);
    this.field = field;
  }
}

const line = (id: string, description: string) => `  ${id.padEnd(22)}- ${description}\n`;

/** The list that `-o help` and a wrong field name print. `types`: as `-S help` wants it, with the type instead of groups. */
export function fieldHelp<Row>(groups: readonly FieldGroup<Row>[], types = false): string {
  const kind = (type: string) => (types ? ` [${type}]` : '');
  const section = (title: string, lines: string) => `${title}\n${'-'.repeat(title.length)}\n${lines} \n`;
  const titles = [...new Set(groups.map((group) => group.title))];
  return (
    titles
      .map((title) => {
        const same = groups.filter((group) => group.title === title);
        return section(
          `${title} Fields`,
          (types ? '' : line(`${same[0].prefix}_all`, 'Every field of this group.')) +
            same
              .flatMap((group) => group.fields)
              .map((field) => line(field.id, field.description + kind(field.type)))
              .join(''),
        );
      })
      .join('') +
    section(
      'Special Fields',
      line(SELECTED, `Whether the row passed the selection.${kind('number')}`) +
        line('help', 'This list.') +
        line('?', 'This list.'),
    )
  );
}

/** Wraps what can be wrong in a list of fields into what is printed for it. */
export function withFieldHelp<Row, Result>(
  groups: readonly FieldGroup<Row>[],
  print: (text: string) => void,
  prefix: string,
  parse: () => Result,
): Result | 'help' {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof UnknownField || error instanceof FieldHelp)) throw error;
    print(fieldHelp(groups));
    if (error instanceof FieldHelp) return 'help';
    throw new CommandFailure(`${prefix}Unrecognised field: ${error.field}`, false);
  }
}
