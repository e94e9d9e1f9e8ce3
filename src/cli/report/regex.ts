/**
 * libdevmapper has its own regular expressions: `. * + ? | ( ) [ ] ^ $` and the escapes \n \r \t; any other escaped
 * character, and any other sign, stands for itself. Undefined when the expression is not well-formed.
 */
export function toRegExp(source: string): RegExp | undefined {
  let out = '';
  for (let i = 0; i < source.length; i++) {
    const c = source[i];
    if (c === '\\') {
      if (++i >= source.length) return undefined;
      out += 'nrt'.includes(source[i]) ? `\\${source[i]}` : literal(source[i]);
    } else if (c === '[') {
      const end = endOfClass(source, i);
      if (end < 0) return undefined;
      out += characterClass(source.slice(i + 1, end));
      i = end;
    } else out += '.*+?|()^$'.includes(c) ? c : literal(c);
  }
  try {
    return new RegExp(out, 's');
  } catch {
    return undefined;
  }
}

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
      out += 'nrt'.includes(inside[i]) ? `\\${inside[i]}` : literal(inside[i]);
    } else if (inside[i] === '-' && i > (negated ? 1 : 0) && i + 1 < inside.length) out += '-';
    else out += literal(inside[i]);
  }
  return `[${negated ? '^' : ''}${out}]`;
}
