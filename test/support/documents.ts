/**
 * Fenced blocks of the documents. In a `console` block, a line `$ COMMAND` is a command (a backslash at the end goes on
 * with the next line), the lines below it are its output: none means "whatever it prints", `…` within a line any text, a
 * line of only `…` any lines.
 */
export interface Block {
  text: string;
  /** In the document, from 1. */
  line: number;
}

export interface Command {
  command: string;
  output: string[];
  line: number;
}

export function blocks(markdown: string, language: string): Block[] {
  const found: Block[] = [];
  let open: { language: string; line: number; lines: string[] } | undefined;
  for (const [i, line] of markdown.split('\n').entries()) {
    const fence = /^\s*```(\w*)/.exec(line);
    if (!fence) open?.lines.push(line);
    else if (!open) open = { language: fence[1], line: i + 2, lines: [] };
    else {
      if (open.language === language) found.push({ text: open.lines.join('\n'), line: open.line });
      open = undefined;
    }
  }
  return found;
}

export function commands({ text, line }: Block): Command[] {
  const found: Command[] = [];
  let continued = false;
  for (const [i, each] of text.split('\n').entries()) {
    const last = found.at(-1);
    if (continued && last) last.command += `\n${each}`;
    else if (each.startsWith('$ ')) found.push({ command: each.slice(2), output: [], line: line + i });
    else if (last) last.output.push(each);
    else throw new Error(`Line ${line + i} stands before the first "$ " of its block: ${each}`);
    continued = /\\$/.test(each) && (continued || each.startsWith('$ '));
  }
  return found;
}

/** Whether a program printed what a document says. */
export function matches(printed: string, output: readonly string[]): boolean {
  const lines = output.join('\n').trimEnd();
  if (lines === '') return true;
  const escaped = lines.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  const pattern = escaped.replace(/^…$/gm, '[^]*?').replaceAll('…', '[^\\n]*');
  return new RegExp(`^${pattern}$`).test(printed.trimEnd());
}
