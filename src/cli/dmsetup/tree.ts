/** `ls --tree`: which device lies on which. */
import type { Dependency, DeviceInfo } from '../../api/index.ts';
import { kernelName } from './print.ts';
import type { Session } from './session.ts';
import type { TreeOptions } from './tree-options.ts';

interface Node {
  /** Empty for a disk that has only a number. */
  readonly name: string;
  readonly number: string;
  readonly kernelName: string | undefined;
  /** Absent for what is no mapped device. */
  readonly info?: DeviceInfo;
  /** What it uses, in the order of `deps`. */
  readonly below: Node[];
  /** What uses it, in listing order. */
  readonly above: Node[];
}

/** Characters of the drawing, replaced by those of the terminal when a line is done. */
const HORIZONTAL = '\u{E000}';
const VERTICAL = '\u{E001}';
const BRANCH = '\u{E002}';
const CORNER = '\u{E003}';
const DOWN = '\u{E004}';
const SYMBOLS = { ascii: '-||`+', utf: '─│├└┬', vt100: 'qxtmw' };

/** `devices` in listing order; each line ends in a newline. `width`: of the terminal. */
export function drawTree(
  session: Session,
  devices: readonly DeviceInfo[],
  options: TreeOptions,
  width: number,
): string {
  const nodes = buildNodes(session, devices);
  const roots = nodes.filter((node) => (options.inverted ? node.below : node.above).length === 0);
  const drawing = new Drawing(session, options, width);
  roots.forEach((root, i) => {
    drawing.draw(root, 0, i === roots.length - 1);
  });
  return drawing.text;
}

/** Every node in order of discovery: the devices as listed, each followed by what it uses. */
function buildNodes(session: Session, devices: readonly DeviceInfo[]): Node[] {
  const infos = new Map(devices.map((info) => [info.name, info]));
  const nodes = new Map<string, Node>();
  const add = (key: string, node: Node, deps: readonly Dependency[]): Node => {
    nodes.set(key, node);
    for (const dependency of deps) node.below.push(ofDependency(dependency));
    return node;
  };
  const ofDevice = (info: DeviceInfo): Node => {
    const known = nodes.get(`mapped ${info.name}`);
    if (known) return known;
    const node: Node = {
      name: session.shown(info.name),
      number: `${info.major}:${info.minor}`,
      kernelName: kernelName(info),
      info,
      below: [],
      above: [],
    };
    return add(`mapped ${info.name}`, node, info.deps);
  };
  const ofDependency = (dependency: Dependency): Node => {
    const info = dependency.mapped === undefined ? undefined : infos.get(dependency.mapped);
    if (info) return ofDevice(info);
    const number = `${dependency.major}:${dependency.minor}`;
    // A file or a URI has no number of its own: its path is its name.
    const numbered = number !== '0:0';
    const key = numbered ? `disk ${number}` : `file ${dependency.name}`;
    const known = nodes.get(key);
    if (known) return known;
    const name = numbered ? '' : dependency.name;
    return add(key, { name, number, kernelName: numbered ? dependency.name : undefined, below: [], above: [] }, []);
  };
  for (const info of devices) {
    const node = ofDevice(info);
    for (const dependency of info.deps) ofDependency(dependency).above.push(node);
  }
  return [...nodes.values()];
}

class Drawing {
  text = '';
  #line = '';
  readonly #session: Session;
  readonly #options: TreeOptions;
  readonly #terminalWidth: number;
  /** At each depth: whether siblings follow, and in compact form what the node before its children took up. */
  readonly #more: boolean[] = [];
  readonly #width: number[] = [];

  constructor(session: Session, options: TreeOptions, terminalWidth: number) {
    this.#session = session;
    this.#options = options;
    this.#terminalWidth = terminalWidth;
  }

  draw(node: Node, depth: number, last: boolean): void {
    const { compact, inverted } = this.#options;
    let children = inverted ? node.above : node.below;
    // Elsewhere a hidden disk still takes its place among its siblings.
    if (compact) children = children.filter((child) => this.#isShown(child));
    if (this.#isShown(node)) this.#drawNode(node, depth, last, children.length > 0);
    children.forEach((child, i) => {
      this.draw(child, depth + 1, i === children.length - 1);
    });
  }

  #isShown(node: Node): boolean {
    return node.name !== '' || this.#options.device || this.#options.blkdevname;
  }

  #drawNode(node: Node, depth: number, last: boolean, hasChildren: boolean): void {
    const { compact } = this.#options;
    this.#more[depth] = !last;
    this.#width[depth] = 0;
    const firstOnLine = this.#line === '';
    if (firstOnLine) this.#drawPrefix(depth);
    const start = this.#line.length;
    if (!firstOnLine) this.#line += HORIZONTAL + (last ? HORIZONTAL : DOWN) + HORIZONTAL;
    this.#line += this.#label(node);
    if (compact) this.#width[depth] = this.#line.length - start;
    if (!compact || !hasChildren) this.#endLine();
    if (hasChildren) {
      this.#more[depth + 1] = true;
      this.#width[depth + 1] = 0;
    }
  }

  #drawPrefix(depth: number): void {
    for (let d = 0; d < depth; d++) {
      this.#line += ' '.repeat((this.#width[d] ?? 0) + 1);
      if (d === depth - 1) this.#line += (this.#more[depth] ? BRANCH : CORNER) + HORIZONTAL;
      else this.#line += this.#more[d + 1] ? `${VERTICAL} ` : '  ';
    }
  }

  #label({ name, number, kernelName, info }: Node): string {
    const { blkdevname, device, active, rw, open, uuid } = this.#options;
    let label = name;
    if (blkdevname && kernelName !== undefined) label += ` <${kernelName}>`;
    if (device) label += ` (${number})`;
    const attributes: string[] = [];
    if (info && active) attributes.push(info.suspended ? 'SUSPENDED' : 'ACTIVE');
    if (info && rw) attributes.push(info.readOnly ? 'RO' : 'RW');
    if (info && open) attributes.push(String(info.openCount));
    if (info && uuid) attributes.push(this.#session.shown(info.uuid, 'UUID'));
    if (info && (active || rw || open || uuid)) label += ` [${attributes.join(', ')}]`;
    return label;
  }

  #endLine(): void {
    const characters = [...this.#line];
    // The real one counts columns from 1: of a line that is too long, one column less than fits is left.
    const cut = this.#options.truncate && characters.length > this.#terminalWidth;
    const line = cut ? `${characters.slice(0, this.#terminalWidth - 1).join('')}...` : this.#line;
    this.text += `${line.replace(/[\u{E000}-\u{E004}]+/gu, (run) => this.#symbols(run))}\n`;
    this.#line = '';
  }

  #symbols(run: string): string {
    const set = SYMBOLS[this.#options.symbols];
    const drawn = [...run].map((symbol) => set[symbol.codePointAt(0)! - 0xe000]).join('');
    return this.#options.symbols === 'vt100' ? `\x1b(0\x0f${drawn}\x1b(B` : drawn;
  }
}
