/**
 * `-S EXPR`: which rows a report shows.
 *
 *     EXPR := AND { ("||" | "#") AND }      AND := TERM { ("&&" | ",") TERM }
 *     TERM := FIELD OP VALUE | "(" EXPR ")" | "!" "(" EXPR ")"
 *
 * `=` and `!=` compare strings whole and numbers by value, `=~` and `!~` search a string for a regular expression,
 * `>= > <= <` compare numbers.
 */
import { CommandFailure } from '../failure.ts';
import { type FieldGroup, fieldHelp, findField, SELECTED } from './field.ts';
import { toRegExp } from './regex.ts';

export type Selection<Row> = (row: Row) => boolean;

/** The explanation that `-S help` asks for, and a wrong operator gets. */
const OPERATOR_HELP = `Selection operands
------------------
  field               - Name of a field.
  number              - Whole number, not negative.
  string              - Bare, or between ' or ".
  regular expression  - Bare, or between ' or ", or between brackets of any kind.

Selection operators
-------------------
  =   equal              [number, string]
  !=  not equal          [number, string]
  =~  matches            [regular expression on a string]
  !~  does not match     [regular expression on a string]
  >=  >  <=  <           [number]

  &&  ,    both hold
  ||  #    at least one holds
  !( )     does not hold
  ( )      grouping

`;

/** Throws a CommandFailure that is already complete: nothing is said after it. `print` gets the explanations first. */
export function parseSelection<Row>(
  text: string,
  groups: readonly FieldGroup<Row>[],
  print: (text: string) => void,
): Selection<Row> | 'help' {
  if (text === 'help' || text === '?') {
    print(fieldHelp(groups, true) + OPERATOR_HELP);
    return 'help';
  }
  const parser = new Parser(text, groups, print);
  const selection = parser.or();
  parser.skipBlanks();
  if (!parser.atEnd()) throw parser.syntaxError('Expecting logical operator');
  return selection;
}

const OPERATORS = ['=~', '!~', '!=', '>=', '<=', '=', '>', '<'] as const;
type Operator = (typeof OPERATORS)[number];
const CLOSING: Record<string, string> = { '"': '"', "'": "'", '(': ')', '[': ']', '{': '}' };

class Parser<Row> {
  #at = 0;
  readonly #text: string;
  readonly #groups: readonly FieldGroup<Row>[];
  readonly #print: (text: string) => void;

  constructor(text: string, groups: readonly FieldGroup<Row>[], print: (text: string) => void) {
    this.#text = text;
    this.#groups = groups;
    this.#print = print;
  }

  atEnd() {
    return this.#at >= this.#text.length;
  }

  skipBlanks() {
    while (/\s/.test(this.#text.charAt(this.#at))) this.#at++;
  }

  syntaxError(what: string, at = this.#at) {
    const place = `Selection syntax error at '${this.#text.slice(at)}'.`;
    return new CommandFailure(`${what}\n${place}\nUse 'help' for selection to get more help.`, false);
  }

  #take(...tokens: string[]): boolean {
    this.skipBlanks();
    const token = tokens.find((candidate) => this.#text.startsWith(candidate, this.#at));
    if (token) this.#at += token.length;
    return token !== undefined;
  }

  or(): Selection<Row> {
    const parts = [this.#and()];
    while (this.#take('||', '#')) parts.push(this.#and());
    return parts.length === 1 ? parts[0] : (row) => parts.some((part) => part(row));
  }

  #and(): Selection<Row> {
    const parts = [this.#term()];
    while (this.#take('&&', ',')) parts.push(this.#term());
    return parts.length === 1 ? parts[0] : (row) => parts.every((part) => part(row));
  }

  #expect(parenthesis: '(' | ')') {
    if (this.#take(parenthesis)) return;
    const side = parenthesis === '(' ? 'left' : 'right';
    throw new CommandFailure(`Syntax error: ${side} parenthesis expected at '${this.#text.slice(this.#at)}'`, false);
  }

  #term(): Selection<Row> {
    if (this.#take('!')) {
      this.#expect('(');
      const inner = this.or();
      this.#expect(')');
      return (row) => !inner(row);
    }
    if (this.#take('(')) {
      const inner = this.or();
      this.#expect(')');
      return inner;
    }
    return this.#comparison();
  }

  #comparison(): Selection<Row> {
    this.skipBlanks();
    const start = this.#at;
    const name = /^[A-Za-z0-9_-]*/.exec(this.#text.slice(start))![0];
    if (!name) throw this.syntaxError('Expecting field name');
    const field = findField(name, this.#groups);
    if (!field) {
      this.#print(fieldHelp(this.#groups, true));
      throw this.syntaxError(`Unrecognised selection field: ${name}`, start);
    }
    this.#at += name.length;
    this.skipBlanks();
    const rest = this.#text.slice(this.#at);
    const operator = OPERATORS.find((candidate) => rest.startsWith(candidate));
    if (!operator) {
      this.#print(OPERATOR_HELP);
      throw this.syntaxError(`Unrecognised comparison operator: ${rest}`, start);
    }
    this.#at += operator.length;
    this.skipBlanks();
    const numeric = field === SELECTED || field.type === 'number';
    const value = field === SELECTED ? () => 1 : (row: Row) => field.value(row);
    const id = field === SELECTED ? SELECTED : field.id;
    if (operator === '=~' || operator === '!~') return this.#regex(id, numeric, operator, value);
    if (numeric) return compareNumbers(operator, this.#number(id, start), value);
    if (operator !== '=' && operator !== '!=') {
      this.#print(OPERATOR_HELP);
      const problem = 'Operator can be used only with number, size, time or percent fields';
      throw this.syntaxError(`${problem}: ${this.#text.slice(start)}`, start);
    }
    const wanted = this.#word(id, start, '\'"');
    return operator === '=' ? (row) => String(value(row)) === wanted : (row) => String(value(row)) !== wanted;
  }

  #regex(id: string, numeric: boolean, operator: Operator, value: (row: Row) => unknown): Selection<Row> {
    const source = this.#word(id, this.#at, '\'"([{');
    if (numeric) throw new CommandFailure(`dm_report: incompatible comparison type for selection field ${id}`, false);
    const regex = toRegExp(source);
    if (!regex)
      throw new CommandFailure(
        `missing ')' in regular expression\nParse error in regex\nCouldn't parse regex\ndm_report: failed to create regex matcher for selection field ${id}`,
        false,
      );
    const matches = operator === '=~';
    return (row) => regex.test(String(value(row))) === matches;
  }

  /** A quoted word, or a bare one up to a blank, a closing parenthesis or a logical operator. */
  #word(id: string, start: number, quotes: string): string {
    const quote = this.#text.charAt(this.#at);
    if (quote && quotes.includes(quote)) {
      const end = this.#text.indexOf(CLOSING[quote], this.#at + 1);
      if (end < 0)
        throw this.syntaxError(`Missing end quote.\nFailed to parse string value for selection field ${id}.`, start);
      const word = this.#text.slice(this.#at + 1, end);
      this.#at = end + 1;
      return word;
    }
    const word = /^(?:(?!&&|\|\|)[^\s),#])*/.exec(this.#text.slice(this.#at))![0];
    this.#at += word.length;
    return word;
  }

  #number(id: string, start: number): number {
    const digits = /^(\d*)(?:\.\d*)?([a-zA-Z]?)/.exec(this.#text.slice(this.#at))!;
    if (!digits[1]) throw this.syntaxError(`Failed to parse numeric value for selection field ${id}.`, start);
    if (/[bskmgtpe]/i.test(digits[2]))
      throw this.syntaxError(`Found size unit specifier but numeric value expected for selection field ${id}.`, start);
    this.#at += digits[0].length - digits[2].length;
    return Number(digits[1]);
  }
}

function compareNumbers<Row>(operator: Operator, wanted: number, value: (row: Row) => string | number): Selection<Row> {
  const compare: Partial<Record<Operator, (n: number) => boolean>> = {
    '=': (n) => n === wanted,
    '!=': (n) => n !== wanted,
    '>': (n) => n > wanted,
    '>=': (n) => n >= wanted,
    '<': (n) => n < wanted,
    '<=': (n) => n <= wanted,
  };
  const holds = compare[operator]!;
  return (row) => holds(Number(value(row)));
}
