// Numbers, times and sizes as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 6 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const NOTHING = "–";

/** A whole number with its thousands apart. */
export const count = (number) => (number == null ? NOTHING : whole.format(number));

/** A number on an axis or a tile: 12.3K. */
export const short = (number) => (number == null ? NOTHING : Math.abs(number) < 10_000 ? rate(number) : compact.format(number));

/** A number that may have a fraction, with no more of it than says something. */
export function rate(number) {
  if (number == null) return NOTHING;
  if (number === 0 || Math.abs(number) >= 100) return whole.format(number);
  return Number(number.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 6 });
}

/**
 * What a measure is: a number, the text of one that has more digits than a number can, the most frequent values (whose counts may
 * be wrong by `error`), or nothing.
 */
export function measured(value, error = 0) {
  if (value == null) return NOTHING;
  if (typeof value === "number") return exact.format(value);
  if (!Array.isArray(value)) return String(value);
  const may = error > 0 ? ` ±${count(error)}` : "";
  return value.map((each) => `${text(each.value)} (${count(each.count)}${may})`).join(", ") || NOTHING;
}

/** The number of a measure, where it is one that can be drawn. */
export function drawn(value) {
  if (value == null || typeof value === "object") return null;
  const number = Number(value);
  return Number.isFinite(number) ? number : null;
}

/** A value of a group. */
export const text = (value) =>
  value === null || value === undefined ? "(none)" : typeof value === "string" ? value : JSON.stringify(value);

export function bytes(number) {
  if (number == null) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) [number, unit] = [number / 1024, unit + 1];
  return `${unit === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

/** Seconds, as 830 µs, 4.2 ms or 1.3 s. */
export function seconds(number) {
  if (number == null) return NOTHING;
  if (number === 0) return "0 s";
  if (number < 0.001) return `${Math.round(number * 1e6)} µs`;
  return number < 1 ? `${rate(number * 1000)} ms` : `${rate(number)} s`;
}

export function duration(of) {
  const parts = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const first = Math.max(
    0,
    parts.findIndex(([, length]) => of >= length),
  );
  const said = parts
    .slice(of < 1 ? 3 : first)
    .slice(0, 2)
    .map(([unit, length], at) => {
      const number = at === 0 ? Math.floor(of / length) : Math.floor((of % parts[first][1]) / length);
      return at > 0 && number === 0 ? "" : `${number} ${unit}`;
    });
  return said.filter(Boolean).join(" ");
}

/** Of a window as the daemon writes it (1m, 1day, 2h 30m), in seconds. */
export function lengthOf(window) {
  const units = {
    ms: 0.001,
    s: 1,
    sec: 1,
    second: 1,
    m: 60,
    min: 60,
    minute: 60,
    h: 3600,
    hour: 3600,
    d: 86400,
    day: 86400,
    week: 604800,
    w: 604800,
    month: 2630016,
    M: 2630016,
    year: 31557600,
    y: 31557600,
  };
  const parts = [...String(window).matchAll(/(\d+)\s*([a-zA-Z]+)/g)];
  const length = parts.reduce((sum, [, number, unit]) => sum + number * (units[unit] ?? units[unit.replace(/s$/, "")] ?? 0), 0);
  return length || 60;
}

/** A length as the daemon reads it. */
export function span(seconds) {
  for (const [unit, length] of [
    ["d", 86400],
    ["h", 3600],
    ["m", 60],
  ]) {
    if (seconds >= length && seconds % length === 0) return `${seconds / length}${unit}`;
  }
  return `${seconds}s`;
}

const two = (number) => String(number).padStart(2, "0");

/** A moment, as the reader's clock has it. */
export function moment(rfc3339) {
  const at = new Date(rfc3339);
  if (Number.isNaN(at.getTime())) return String(rfc3339);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** How the times of steps of so many seconds are written: days are those of the zone, or of UTC, all else is by the reader's clock. */
export function timesBy(step, ofAggregate) {
  const isDays = step >= 86400;
  const zone = isDays ? known(ofAggregate ?? "UTC") : undefined;
  const days = new Intl.DateTimeFormat("sv-SE", { timeZone: zone, dateStyle: "short" });
  const of = (time) => (isDays ? days.format(time) : step % 60 === 0 ? moment(time).slice(0, -3) : moment(time));
  const whose = zone ?? new Intl.DateTimeFormat().resolvedOptions().timeZone;
  const range = (from, to) => `${of(Date.parse(from))} to ${of(Date.parse(to) - (isDays ? 1 : 0))} (${whose})`;
  return { zone, of, range };
}

/** The zone, if this browser has it. */
function known(zone) {
  try {
    return new Intl.DateTimeFormat("en", { timeZone: zone }) && zone;
  } catch {
    return "UTC";
  }
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
