/**
 * libdevmapper has its own regular expressions: `. * + ? | ( ) [ ] ^ $` and the escapes \n \r \t; any other escaped
 * character, and any other sign, stands for itself. Undefined when the expression is not well-formed; an alternative
 * or a group with nothing in it is not.
 */
export function toRegExp(source: string): RegExp | undefined {
  let out = '';
  // Whether something must follow that can be repeated or be an alternative.
  let wanting = true;
  let repeated = false;
  for (let i = 0; i < source.length; i++) {
    const c = source[i];
    const repeats = '*+?'.includes(c);
    if (wanting && (repeats || c === '|' || c === ')')) return undefined;
    wanting = c === '|' || c === '(';
    if (repeats && repeated) {
      // JavaScript takes a second sign for something else: here it repeats the repetition.
      if (!out.endsWith(c)) out = `${out.slice(0, -1)}*`;
      continue;
    }
    repeated = repeats;
    if (c === '\\') {
      if (++i >= source.length) return undefined;
      out += escaped(source[i]);
    } else if (c === '[') {
      const end = endOfClass(source, i);
      if (end < 0) return undefined;
      out += characterClass(source.slice(i + 1, end));
      i = end;
    } else out += '.*+?|()^$'.includes(c) ? c : literal(c);
  }
  if (wanting) return undefined;
  try {
    return new RegExp(out, 's');
  } catch {
    return undefined;
  }
}

const escaped = (c: string) => ('nrt'.includes(c) ? `\\${c}` : literal(c));

/** A UTF-16 unit that means itself. */
const literal = (c: string) => (/\w/.test(c) ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);

function endOfClass(source: string, start: number): number {
  for (let i = start + 1; i < source.length; i++) {
    if (source[i] === '\\') i++;
    else if (source[i] === ']') return i;
  }
  return -1;
}

/** The inside of brackets: `^` first, ranges, escapes. */
function characterClass(inside: string): string {
  const negated = inside.startsWith('^');
  let out = '';
  for (let i = negated ? 1 : 0; i < inside.length; i++) {
    if (inside[i] === '\\' && i + 1 < inside.length) {
      i++;
      out += escaped(inside[i]);
    } else if (inside[i] === '-' && i > (negated ? 1 : 0) && i + 1 < inside.length) out += '-';
    else out += literal(inside[i]);
  }
  return `[${negated ? '^' : ''}${out}]`;
}
