// Formats numbers with units. Widths are stable, so that changing figures do not move their row.  (pure)

export const NONE = "–";

/** A count: 1,234; from 100,000 on 123k. */
export function count(value) {
  if (value >= 10_000_000) return `${Math.round(value / 1e6).toLocaleString("en")}M`;
  if (value >= 100_000) return `${Math.round(value / 1e3)}k`;
  return Math.round(value).toLocaleString("en");
}

/** A rate per second, without "/s"; fractions only below 10. */
export function rate(value) {
  return value > 0 && value < 10 ? value.toFixed(1) : count(value);
}

/** A time in ms, with its unit: 0.4 ms, 12 ms, 1.2 s. */
export function ms(value) {
  if (value === null || value === undefined) return NONE;
  if (value > 0 && value < 9.95) return `${value.toFixed(1)} ms`;
  return value < 999.5 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

/** Bytes: 61 MB. */
export function bytes(value) {
  if (!value) return "0 B";
  const power = Math.min(4, Math.floor(Math.log10(value) / 3));
  const scaled = value / 1000 ** power;
  return `${scaled >= 10 || power === 0 ? Math.round(scaled) : scaled.toFixed(1)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** A share as a percentage: 12 %. */
export function percent(part) {
  return `${Math.round(100 * part)} %`;
}

/** Seconds as a duration: 42 s, 5 min, 3 h 20 min, 4 d. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** A number with its noun: 1 client, 2 clients. */
export function some(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** Names as a list in a sentence: n1, n2 and n3. */
export function listed(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
