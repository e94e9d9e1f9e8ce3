/**
 * Every call the control socket takes, with the names of its parameters and what each must look like. `POST /v1/<call>`
 * carries them as one JSON object: `{"device": {"name": "dev"}, "options": {"inactive": true}}`. The server checks a
 * request against this list before anything is called; the client makes its methods from it.
 */
import { DmError } from '../../errors.ts';

/** Throws a DmError that names `what`, unless `value` is of the kind. */
type Check = (value: unknown, what: string) => void;

const bad = (what: string, expected: string) =>
  new DmError('BAD_REQUEST', 'EINVAL', `Cannot take the request: ${what} must be ${expected}`);

const text: Check = (value, what) => {
  if (typeof value !== 'string') throw bad(what, 'a string');
};
const integer: Check = (value, what) => {
  if (!Number.isInteger(value)) throw bad(what, 'an integer');
};
const flag: Check = (value, what) => {
  if (typeof value !== 'boolean') throw bad(what, 'true or false');
};

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const object =
  (fields: Record<string, Check>, required: readonly string[] = []): Check =>
  (value, what) => {
    if (!isObject(value)) throw bad(what, 'an object');
    for (const [name, entry] of Object.entries(value)) {
      if (!Object.hasOwn(fields, name)) throw bad(what, `an object without "${name}"`);
      fields[name](entry, `${what}.${name}`);
    }
    for (const name of required) if (!(name in value)) throw bad(what, `an object with "${name}"`);
  };

const array =
  (item: Check, length?: number): Check =>
  (value, what) => {
    if (!Array.isArray(value) || (length !== undefined && value.length !== length))
      throw bad(what, length === undefined ? 'an array' : `an array of ${length}`);
    for (let i = 0; i < value.length; i++) item(value[i], `${what}[${i}]`);
  };

const optional =
  (check: Check): Check =>
  (value, what) => {
    if (value !== undefined && value !== null) check(value, what);
  };

const options = (fields: Record<string, Check>) => optional(object(fields));

const device: Check = (value, what) => {
  if (isObject(value)) {
    const keys = Object.keys(value).sort().join();
    if (keys === 'name') return text(value.name, `${what}.name`);
    if (keys === 'uuid') return text(value.uuid, `${what}.uuid`);
    if (keys === 'major,minor') {
      integer(value.major, `${what}.major`);
      return integer(value.minor, `${what}.minor`);
    }
  }
  throw bad(what, '{"name": …}, {"uuid": …} or {"major": …, "minor": …}');
};

const targetSpec = object({ start: integer, length: integer, type: text, args: text }, [
  'start',
  'length',
  'type',
  'args',
]);
const inactive = options({ inactive: flag });
const load = options({ readOnly: flag, directory: text });
const suspend = options({ noflush: flag, nolockfs: flag });
const deferred = options({ deferred: flag });

const autoextend = object({ threshold: integer, percent: integer, limit: optional(integer) }, ['threshold', 'percent']);
const pool = { name: text, metadata: text, autoextend, directory: text };

/** Parameters in the order of the method's arguments. */
export const CALLS = {
  version: {},
  targets: {},
  list: { options: inactive },
  info: { device, options: inactive },
  create: {
    name: text,
    options: options({
      uuid: text,
      minor: integer,
      readAhead: integer,
      readAheadMinimum: flag,
      table: optional(array(targetSpec)),
      load,
      resume: suspend,
    }),
  },
  load: { device, table: array(targetSpec), options: load },
  clear: { device },
  suspend: { device, options: suspend },
  resume: { device, options: suspend },
  remove: { device, options: deferred },
  removeAll: { options: deferred },
  rename: { device, newName: text },
  setUuid: { device, uuid: text },
  message: { device, sector: integer, text },
  table: { device, options: inactive },
  status: { device, options: options({ inactive: flag, noflush: flag }) },
  measure: { device, options: inactive },
  wait: { device, event: integer },
  setGeometry: { device, geometry: array(integer, 4) },
  revert: { device },

  fork: {
    image: text,
    name: text,
    options: options({
      chunkSize: integer,
      cow: text,
      cowSize: integer,
      autoextend,
      transient: flag,
      raw: flag,
      directory: text,
    }),
  },
  createPool: { data: text, options: options({ ...pool, size: integer, blockSize: integer }) },
  openPool: { data: text, options: options(pool) },
  extendPool: { name: text, size: integer },
  createVolume: {
    pool: text,
    name: text,
    source: object({ size: integer, volume: text, image: text, raw: flag, id: integer, directory: text }),
  },

  volumes: {},
  diff: { name: text, options: options({ start: integer }) },
  drop: { name: text, options: options({ keepCow: flag }) },
  merge: { name: text, options: options({ keep: flag, force: flag }) },
  mergeProgress: { name: text, options: options({ since: integer }) },

  attach: { name: text },
  detach: { name: text },
  attachments: {},

  events: { after: optional(integer) },

  daemon: {},
  down: { options: options({ force: flag }) },
} as const satisfies Record<string, Record<string, Check>>;

export type CallName = keyof typeof CALLS;

export const isCall = (name: string): name is CallName => Object.hasOwn(CALLS, name);

/** The arguments of `call`, in order, out of a request's body. Throws BAD_REQUEST. */
export function argumentsOf(call: CallName, body: unknown): unknown[] {
  if (!isObject(body)) throw bad('the body', 'a JSON object');
  const checks: Record<string, Check> = CALLS[call];
  for (const name of Object.keys(body))
    if (!Object.hasOwn(checks, name)) throw bad('the body', `an object without "${name}"`);
  return Object.entries(checks).map(([name, check]) => {
    const value = body[name] ?? undefined;
    check(value, name);
    return value;
  });
}

/** The body that carries `values`. */
export function bodyOf(call: CallName, values: readonly unknown[]): Record<string, unknown> {
  return Object.fromEntries(Object.keys(CALLS[call]).map((name, index) => [name, values[index]]));
}
