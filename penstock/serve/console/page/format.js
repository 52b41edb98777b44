// Numbers as people read them; units are always said.
const sized = (value, units, step, digits) => {
  let unit = 0;
  while (Math.abs(value) >= step && unit < units.length - 1) {
    value /= step;
    unit += 1;
  }
  const places = unit === 0 ? 0 : Math.abs(value) < 10 ? digits : Math.abs(value) < 100 ? 1 : 0;
  return [value.toFixed(places), units[unit]];
};

export function bytes(value) {
  return sized(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024, 1).join(" ");
}

export function count(value) {
  if (Math.abs(value) < 100000) return Math.round(value).toLocaleString("en");
  return sized(value, ["", "k", "M", "G", "T"], 1000, 2).join(" ");
}

export function ms(value) {
  if (value >= 3600000) return `${(value / 3600000).toFixed(1)} h`;
  if (value >= 60000) return `${(value / 60000).toFixed(1)} min`;
  if (value >= 1000) return `${(value / 1000).toFixed(value < 10000 ? 2 : 1)} s`;
  return `${value === 0 ? 0 : value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
}

/** Seconds of a stream: 01:05.0, 1:01:05.0 */
export function clock(seconds) {
  const hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
  const rest = (seconds % 60).toFixed(1).padStart(4, "0");
  return `${hours ? `${hours}:` : ""}${String(minutes).padStart(2, "0")}:${rest}`;
}

export const nats = (value) => value.toFixed(2);

const PLACES = { new: "empty", device: "device", ram: "RAM", disk: "disk" };
export const place = (name) => PLACES[name] ?? name;

/** "1 token", "2 tokens" */
export const some = (value, word) => `${count(value)} ${word}${Math.round(value) === 1 ? "" : "s"}`;
