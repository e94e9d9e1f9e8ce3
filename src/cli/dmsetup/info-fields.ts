/** The fields of `info -c` and splitname. */
import type { DeviceInfo } from '../../api/index.ts';
import type { Field, FieldGroup } from '../report/field.ts';
import { unmangleAll } from './mangle.ts';
import { kernelName } from './print.ts';
import type { Session } from './session.ts';
import { splitName } from './split-name.ts';
import { STATISTICS_GROUPS } from './statistics-fields.ts';

/** A row: a device, or for splitname a name alone. */
export interface Row {
  readonly session: Session;
  readonly info?: DeviceInfo;
  /** Every device by stored name, for what is known of the users of one. */
  readonly devices: ReadonlyMap<string, DeviceInfo>;
  readonly lvm: { readonly subsystem: string; readonly vg: string; readonly lv: string; readonly layer: string };
}

export function deviceRow(session: Session, info: DeviceInfo, devices: ReadonlyMap<string, DeviceInfo>): Row {
  const dash = info.uuid.indexOf('-');
  const subsystem = dash < 0 ? '' : info.uuid.slice(0, dash);
  return { session, info, devices, lvm: { subsystem, ...splitName(info.name, subsystem) } };
}

type Value = (info: DeviceInfo, row: Row) => string | number;

function field(type: 'string' | 'number') {
  return (id: string, heading: string, width: number, description: string, value: Value): Field<Row> => ({
    id,
    heading,
    width,
    type,
    description,
    value: (row) => (row.info ? value(row.info, row) : ''),
  });
}
const string = field('string');
const number = field('number');
const lvm = (id: string, heading: string, width: number, description: string, key: keyof Row['lvm']): Field<Row> => ({
  id,
  heading,
  width,
  type: 'string',
  description,
  value: ({ lvm }) => lvm[key],
});

const names = (row: Row, stored: readonly string[]) => stored.map((name) => row.session.shown(name)).join(',');
const attributes = (info: DeviceInfo) =>
  (info.live ? 'L' : '-') + (info.inactive ? 'I' : '-') + (info.suspended ? 's' : '-') + (info.readOnly ? 'r' : 'w');
const tables = (info: DeviceInfo) =>
  info.live ? (info.inactive ? 'Both' : 'Live') : info.inactive ? 'Inactive' : 'None';

const nameGroup: FieldGroup<Row> = {
  title: 'Mapped Device Name',
  prefix: 'name',
  fields: [
    string('name', 'Name', 16, 'Name, as the mangling mode shows it.', (d, { session }) => session.shown(d.name)),
    string('mangled_name', 'MangledName', 16, 'Name as it is stored.', (d) => d.name),
    string('unmangled_name', 'UnmangledName', 16, 'Name in plain text.', (d) => unmangleAll(d.name, 'name')),
    string('uuid', 'UUID', 32, 'Uuid, as the mangling mode shows it.', (d, { session }) =>
      session.shown(d.uuid, 'UUID'),
    ),
    string('mangled_uuid', 'MangledUUID', 32, 'Uuid as it is stored.', (d) => d.uuid),
    string('unmangled_uuid', 'UnmangledUUID', 32, 'Uuid in plain text.', (d) => unmangleAll(d.uuid, 'UUID')),
    number('read_ahead', 'RAhead', 6, 'Read-ahead in sectors.', (d) => d.readAhead ?? 0),
  ],
};

const infoGroup: FieldGroup<Row> = {
  title: 'Mapped Device Information',
  prefix: 'info',
  fields: [
    string('blkdevname', 'BlkDevName', 16, 'Kernel name.', (d, { session }) => kernelName(d) ?? session.shown(d.name)),
    string('attr', 'Stat', 4, 'Live and inactive table, suspended, read-only or writable: LIs and r or w.', attributes),
    string('tables_loaded', 'Tables', 6, 'Which tables the device has.', tables),
    string('suspended', 'Suspended', 9, 'Whether the device is suspended.', (d) =>
      d.suspended ? 'Suspended' : 'Active',
    ),
    string('readonly', 'Read-only', 9, 'Whether the device can be written.', (d) =>
      d.readOnly ? 'Read-only' : 'Writeable',
    ),
    string('devno', 'DevNo', 5, 'Major and minor number.', (d) => `${d.major}:${d.minor}`),
    number('major', 'Maj', 3, 'Major number.', (d) => d.major),
    number('minor', 'Min', 3, 'Minor number.', (d) => d.minor),
    number('open', 'Open', 4, 'How many have the device open.', (d) => d.openCount),
    number('segments', 'Targ', 4, 'Targets in the table.', (d) => d.targetCount),
    number('events', 'Event', 6, 'Event number.', (d) => d.eventNumber),
  ],
};

const relations = 'Mapped Device Relationship Information';
const depsGroup: FieldGroup<Row> = {
  title: relations,
  prefix: 'deps',
  fields: [
    number('device_count', '#Devs', 5, 'How many devices this one uses.', (d) => d.deps.length),
    string('devnos_used', 'DevNosUsed', 16, 'Numbers of the devices used.', (d) =>
      d.deps.map(({ major, minor }) => `${major}:${minor}`).join(','),
    ),
    string('blkdevs_used', 'BlkDevNamesUsed', 16, 'Kernel names or paths of the devices used.', (d) =>
      d.deps.map(({ name }) => name).join(','),
    ),
  ],
};
const treeGroup: FieldGroup<Row> = {
  title: relations,
  prefix: 'tree',
  fields: [
    string('devs_used', 'DevNamesUsed', 16, 'Names of the mapped devices used.', (d, row) =>
      names(
        row,
        d.deps.flatMap(({ mapped }) => mapped ?? []),
      ),
    ),
    number('device_ref_count', '#Refs', 5, 'How many mapped devices use this one.', (d) => d.usedBy.length),
    string('names_using_dev', 'RefNames', 8, 'Names of the mapped devices that use this one.', (d, row) =>
      names(row, d.usedBy),
    ),
    string('devnos_using_dev', 'RefDevNos', 9, 'Numbers of the mapped devices that use this one.', (d, { devices }) =>
      d.usedBy
        .flatMap((name) => devices.get(name) ?? [])
        .map(({ major, minor }) => `${major}:${minor}`)
        .join(','),
    ),
  ],
};

const splitGroup: FieldGroup<Row> = {
  title: 'Mapped Device Name Components',
  prefix: 'splitname',
  fields: [
    lvm('subsystem', 'Subsys', 6, 'What the device belongs to.', 'subsystem'),
    lvm('vg_name', 'VG', 4, 'Volume group.', 'vg'),
    lvm('lv_name', 'LV', 4, 'Logical volume.', 'lv'),
    lvm('lv_layer', 'LVLayer', 7, 'Layer of the logical volume.', 'layer'),
  ],
};

export const GROUPS: readonly FieldGroup<Row>[] = [
  nameGroup,
  infoGroup,
  depsGroup,
  treeGroup,
  splitGroup,
  ...STATISTICS_GROUPS,
];

export const INFO_DEFAULT = 'name,major,minor,attr,open,segments,events,uuid';
export const SPLITNAME_DEFAULT = 'vg_name,lv_name,lv_layer';
