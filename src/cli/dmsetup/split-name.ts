/**
 * The parts of an LVM device name: VG, LV and layer, with a `-` between them; a `--` is a literal one. Only names of the
 * subsystem `LVM` have parts.
 */
export function splitName(name: string, subsystem: string): { vg: string; lv: string; layer: string } {
  if (subsystem !== 'LVM') return { vg: '', lv: '', layer: '' };
  const [vg, afterVg] = component(name);
  const [lv, afterLv] = component(afterVg);
  return { vg, lv, layer: component(afterLv)[0] };
}

/** A hyphen at the very end is a literal one too. */
function component(text: string): [component: string, rest: string] {
  let out = '';
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '-' && i + 1 < text.length) {
      if (text[i + 1] !== '-') return [out, text.slice(i + 1)];
      i++;
    }
    out += text[i];
  }
  return [out, ''];
}
