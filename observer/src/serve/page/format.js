// Numbers and times as people read them. What is not known is a dash.

export const NONE = "–";

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const date = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Returns three significant digits. */
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return grouped.format(value);
  if (size < 0.001) return "<0.001";
  const digits = size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return String(Number(value.toFixed(digits)));
}

export const number = (value) => (isNumber(value) ? (Number.isInteger(value) ? grouped.format(value) : short(value)) : NONE);

export const rate = (value) => (isNumber(value) ? short(value) : NONE);

export const percent = (value) => (isNumber(value) ? `${short(value * 100)} %` : NONE);

export function milliseconds(value) {
  if (!isNumber(value)) return NONE;
  return value >= 1000 ? `${short(value / 1000)} s` : `${short(value)} ms`;
}

export function bytes(value) {
  if (!isNumber(value)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${short(value)} ${units[unit]}`;
}

export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export const dateTime = (seconds) => (isNumber(seconds) ? date.format(new Date(seconds * 1000)) : NONE);

export const time = (seconds) => (isNumber(seconds) ? clock.format(new Date(seconds * 1000)) : NONE);
