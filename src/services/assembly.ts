/** The mapper, the forks on it, and who watches both: put together the same way in the daemon and in a program. */
import { Disks } from '../device/open.ts';
import type { Claims } from '../mapper/device-index.ts';
import { Mapper } from '../mapper/mapper.ts';
import { EventLog } from './events/event-log.ts';
import { Monitor, type MonitorOptions } from './events/monitor.ts';
import { Forks, type ForksOptions } from './fork/forks.ts';

export interface AssemblyOptions extends Omit<ForksOptions, 'mapper' | 'emit'> {
  /** Of all mapped devices. */
  major?: number;
  /** Called after every change that a restart must find again, as the mapper's `onChange`. */
  changed?(): void | Promise<void>;
  /** Where events go; a log of its own unless given. */
  events?: MonitorOptions['log'];
  /** Of names and numbers, where there are several. */
  claims?: Claims;
}

export interface Assembly {
  readonly mapper: Mapper;
  readonly forks: Forks;
  readonly monitor: Monitor;
}

export function assemble({
  major,
  changed = () => {},
  events: log = new EventLog(),
  claims,
  ...forking
}: AssemblyOptions): Assembly {
  const mapper: Mapper = new Mapper({
    major,
    opener: new Disks(),
    claims,
    onChange(kind, device) {
      forks.changed(kind, device);
      monitor.changed(kind, device);
      return changed();
    },
    enlarge(device, below) {
      const enlarged = autoextender.full(device, below);
      if (!enlarged) monitor.full(device);
      return enlarged;
    },
  });
  const forks: Forks = new Forks({ ...forking, mapper, emit: log.emit });
  const { autoextender, growth } = forks;
  const monitor: Monitor = new Monitor({
    mapper,
    log,
    filled: (device, cow, fill) => autoextender.filled(device, cow, fill),
    pooled: (device, status) => growth.filled(device, status),
    warn: (device, part, percent) => growth.warn(device, part, percent),
    needed: () => autoextender.needed || growth.needed,
  });
  return { mapper, forks, monitor };
}
