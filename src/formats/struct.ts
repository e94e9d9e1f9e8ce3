/**
 * A format module declares its fields once and gets both directions: `struct(fields)` lays fields end to end, knows
 * their offsets (`at`), and is itself a field.
 */
export interface Field<T> {
  /** Bytes. */
  readonly size: number;
  get(view: DataView, at: number): T;
  set(view: DataView, at: number, value: T): void;
}

type Value<F> = { [K in keyof F]: F[K] extends Field<infer T> ? T : never };
type Offsets<F> = { readonly [K in keyof F]: number };

/** Fields laid end to end. */
export interface Struct<F> extends Field<Value<F>> {
  /** Bytes from the struct's start, by field. */
  readonly at: Offsets<F>;
}

/**
 * Without padding: an unused word is a field, too. `get` makes an object; for thousands use the fields in place with
 * `at`.
 */
export function struct<F extends Record<string, Field<never>> | Record<string, Field<unknown>>>(fields: F): Struct<F> {
  const at = {} as Record<string, number>;
  let size = 0;
  for (const [name, field] of Object.entries(fields)) {
    at[name] = size;
    size += field.size;
  }
  const entries = Object.entries(fields) as [string, Field<unknown>][];
  return {
    size,
    at: at as Offsets<F>,
    get(view, base) {
      const value: Record<string, unknown> = {};
      for (const [name, field] of entries) value[name] = field.get(view, base + at[name]);
      return value as Value<F>;
    },
    set(view, base, value) {
      for (const [name, field] of entries) field.set(view, base + at[name], (value as Record<string, unknown>)[name]);
    },
  };
}

const endian = (little: boolean) => ({
  u8: {
    size: 1,
    get: (view, at) => view.getUint8(at),
    set: (view, at, value) => view.setUint8(at, value),
  } as Field<number>,
  u16: {
    size: 2,
    get: (view, at) => view.getUint16(at, little),
    set: (view, at, value) => view.setUint16(at, value, little),
  } as Field<number>,
  u32: {
    size: 4,
    get: (view, at) => view.getUint32(at, little),
    set: (view, at, value) => view.setUint32(at, value, little),
  } as Field<number>,
  /** Exact below 2^53; above, the nearest number that a double holds, so a range check still refuses it. */
  u64: {
    size: 8,
    get: (view, at) =>
      view.getUint32(at + (little ? 4 : 0), little) * 2 ** 32 + view.getUint32(at + (little ? 0 : 4), little),
    set: (view, at, value) => {
      view.setUint32(at + (little ? 4 : 0), Math.floor(value / 2 ** 32), little);
      view.setUint32(at + (little ? 0 : 4), value % 2 ** 32, little);
    },
  } as Field<number>,
});

/** Little-endian, as everything Linux writes to a disk. */
export const { u8, u16, u32, u64 } = endian(true);
/** Big-endian, as NBD speaks. */
export const big = endian(false);

/** A u64 of which every bit counts: an identifier, not an amount. */
export const wide: Field<bigint> = {
  size: 8,
  get: (view, at) => view.getBigUint64(at, true),
  set: (view, at, value) => view.setBigUint64(at, value, true),
};
