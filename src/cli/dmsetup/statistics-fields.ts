/**
 * Fields of I/O statistics. They are known, so that a list which names them is understood; but no device has statistics
 * regions here, and a report with such a field has a row for each region of each device: none.
 */
import type { Field, FieldGroup } from '../report/field.ts';

const COUNTERS =
  'read_count reads_merged_count read_sector_count read_time write_count writes_merged_count write_sector_count ' +
  'write_time in_progress_count io_ticks queue_ticks read_ticks write_ticks reads_merged_per_sec ' +
  'writes_merged_per_sec reads_per_sec writes_per_sec read_size_per_sec write_size_per_sec avg_request_size ' +
  'queue_size await read_await write_await throughput service_time util interval_ns interval';
const HISTOGRAMS =
  'hist_count hist_count_bounds hist_count_ranges hist_percent hist_percent_bounds hist_percent_ranges';
const REGION_NUMBERS =
  'region_id region_start region_len area_id area_start area_len area_offset area_count precise hist_bins';
const REGION_WORDS = 'group_id program_id user_data hist_bounds hist_ranges stats_name obj_type';

const fields = (ids: string, type: 'string' | 'number'): Field<unknown>[] =>
  ids.split(' ').map((id) => ({
    id,
    heading: id,
    width: 0,
    type,
    description: `I/O statistics: ${id.replaceAll('_', ' ')}.`,
    value: () => '',
  }));

export const STATISTICS_GROUPS: readonly FieldGroup<unknown>[] = [
  {
    title: 'Mapped Device Statistics',
    prefix: 'stats',
    fields: [...fields(COUNTERS, 'number'), ...fields(HISTOGRAMS, 'string')],
  },
  {
    title: 'Mapped Device Statistics Region Information',
    prefix: 'region',
    fields: [...fields(REGION_NUMBERS, 'number'), ...fields(REGION_WORDS, 'string')],
  },
];

const all = new Set<unknown>(STATISTICS_GROUPS.flatMap((group) => group.fields));

export const isStatistic = (field: unknown) => all.has(field);
