// What the daemon does at present, and did in the last quarter of an hour as far as this page was open.

import { Chart, last, mean, most } from "./chart.js";
import { NOTHING, bytes, count, duration, plural, rate, seconds, short } from "./format.js";
import { at, make, say, show, table } from "./page.js";

const KEPT = 15 * 60;
/** A rate is of so many seconds, a quantile of the requests in them: one second alone says little of segments and flushes. */
const OVER = 10;

/** Statuses in the order in which they came. */
let history = [];
let charts;
let isWell;

const sum = (numbers) => Object.values(numbers ?? {}).reduce((sum, number) => sum + number, 0);
const of = {
  accepted: (status) => status.events.accepted,
  rejected: (status) => sum(status.counters.rejected),
  archived: (status) => status.events.archived,
  aggregated: (status) => status.events.aggregated,
};
const sinks = (status) => [...new Set(status.lag.map(({ sink }) => sink))];
const lagOf = (status, sink) => status.lag.filter((lag) => lag.sink === sink).reduce((sum, { records }) => sum + records, 0);

export function enter() {
  draw();
}

/** The next status of the stream. */
export function take(status) {
  const before = history.at(-1);
  // Another process counts from the beginning.
  if (before && (before.pid !== status.pid || before.uptime_seconds > status.uptime_seconds)) history = [];
  history.push(status);
  history = history.filter(({ time }) => time > status.time - KEPT * 1000);
  badge(status);
  draw();
}

/** The stream has ended, for this reason. */
export function lose(why) {
  at("state").textContent = "no answer";
  at("state").className = "badge bad";
  show(at("attention"), make("p", { className: "note bad" }, why));
  if (isWell !== null) say(why);
  isWell = null;
}

function badge(status) {
  const state = status.ready ? (status.degraded ? "degraded" : "ready") : "not ready";
  at("state").textContent = state;
  at("state").className = `badge ${status.ready ? (status.degraded ? "warn" : "good") : "bad"}`;
  // Said when it changes, and not each second.
  if (isWell !== state) say(`The daemon is ${state}.`);
  isWell = state;
}

function draw() {
  const status = history.at(-1);
  if (!status || at("overview").hidden || document.hidden) return;
  charts ??= makeCharts();
  show(at("overview-source"), `ingestd ${status.version}, process ${status.pid}, up ${duration(status.uptime_seconds)}`);
  show(at("attention"), ...attention(status));
  show(at("tiles"), ...tiles(status));
  const times = history.map(({ time }) => time / 1000);
  const rates = (name, read) => ({ name, values: history.map((_, index) => rateAt(index, read)) });
  charts.throughput.set(
    times,
    Object.entries(of).map(([name, read]) => rates(name, read)),
  );
  charts.latency.set(
    times,
    [0.5, 0.99].map((share) => ({
      name: `p${share * 100}`,
      values: history.map((_, index) => quantileAt(index, share)),
    })),
  );
  charts.lag.set(
    times,
    sinks(status).map((sink) => ({ name: sink, values: history.map((each) => lagOf(each, sink)) })),
  );
  show(at("disk"), ...disk(status));
  show(at("progress"), ...progress(status));
  show(at("parts"), ...parts(status));
}
document.addEventListener("visibilitychange", draw);

function makeCharts() {
  const now = (format) => ({
    format,
    short,
    columns: [
      ["Now", last],
      ["Mean", mean],
      ["Most", most],
    ],
  });
  return {
    throughput: new Chart(at("throughput"), { caption: "Throughput, records a second", ...now(rate) }),
    latency: new Chart(at("latency"), { caption: "Acknowledgement latency", ...now(seconds), short: seconds }),
    lag: new Chart(at("lag"), { caption: "Lag of each sink, records", ...now(count) }),
  };
}

/** The status of about `OVER` seconds before this one. */
function earlier(index) {
  const until = history[index].time - OVER * 1000;
  let first = index;
  while (first > 0 && history[first].time > until) first -= 1;
  return history[first];
}

function rateAt(index, read) {
  const [now, then] = [history[index], earlier(index)];
  return now === then ? null : ((read(now) - read(then)) * 1000) / (now.time - then.time);
}

/** As Prometheus estimates it: evenly spread within the bucket that it falls into. */
function quantileAt(index, share) {
  const [now, then] = [history[index], earlier(index)];
  const buckets = now.latency.map(([bound, number], bucket) => [bound, number - then.latency[bucket][1]]);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all === 0) return null;
  const rank = share * all;
  const found = buckets.findIndex(([, number]) => number >= rank);
  const [low, before] = found === 0 ? [0, 0] : buckets[found - 1];
  const [high, number] = buckets[found];
  return high === null ? low : low + ((high - low) * (rank - before)) / (number - before);
}

function attention(status) {
  const notes = [];
  const add = (kind, title, why, action) =>
    notes.push(
      make(
        "div",
        { className: `note ${kind}` },
        make("strong", {}, title),
        ` ${why ?? ""}`,
        action ? make("p", { className: "do" }, make("span", {}, "What to do: "), action) : null,
      ),
    );
  if (status.refusing_events) add("bad", "Events are refused.", status.refusing_events);
  for (const { sink, topic, partition, reason, do: action } of status.halted) {
    add("bad", `Partition ${partition} of ${topic} is halted (${sink}).`, reason, action);
  }
  for (const [name, { available, reason }] of Object.entries(status.dependencies)) {
    if (!available) add("bad", `${name} cannot be used.`, reason);
  }
  for (const [name, { state, reason }] of Object.entries(status.actors)) {
    if (!["running", "starting"].includes(state)) add(state === "paused" ? "warn" : "bad", `${name} is ${state}.`, reason);
  }
  for (const [listener, tls] of Object.entries(status.tls ?? {})) {
    if (tls?.warning) add("warn", `TLS of ${listener}:`, tls.warning);
  }
  if (notes.length === 0)
    notes.push(make("p", { className: "note good" }, "All is well: events are taken, every sink works, nothing is halted."));
  return notes;
}

function tiles(status) {
  const restarts = sum(status.counters.restarts);
  const restarted = Object.entries(status.counters.restarts)
    .map(([actor, number]) => `${actor} ${number}`)
    .join(", ");
  const quarantined = sum(status.counters.quarantined);
  const { used_percent: used, max_used_percent: most } = status.disk;
  const lag = sinks(status).map((sink) => lagOf(status, sink));
  const tile = (name, number, detail, kind = "") =>
    make(
      "div",
      { className: `tile ${kind}` },
      make("dt", {}, name),
      make("dd", {}, make("b", {}, number), make("small", {}, detail)),
    );
  const perSecond = (read) => `${rate(rateAt(history.length - 1, read))} a second`;
  return [
    tile("Accepted", count(status.events.accepted), perSecond(of.accepted)),
    tile("Rejected", count(of.rejected(status)), perSecond(of.rejected)),
    tile("Archived", count(status.events.archived), perSecond(of.archived)),
    tile("Aggregated", count(status.events.aggregated), perSecond(of.aggregated)),
    tile(
      "Dead letters",
      count(status.events.dead_lettered),
      quarantined > 0 ? `and ${count(quarantined)} quarantined` : "of records",
      status.events.dead_lettered > 0 ? "warn" : "",
    ),
    tile("Lag", count(lag.length > 0 ? Math.max(...lag) : null), "records, of the slower sink"),
    tile("Restarts", count(restarts), restarted || "of actors", restarts > 0 ? "warn" : ""),
    tile("Disk", `${rate(used)} %`, `events are taken below ${rate(most)} %`, used >= most ? "bad" : ""),
  ];
}

function disk(status) {
  const { used_percent: used, max_used_percent: most, resume_percent: resume } = status.disk;
  const meter = make("meter", { min: 0, max: 100, high: most, optimum: 0, value: used, "aria-label": "Disk used, in percent" });
  return [
    meter,
    make(
      "p",
      {},
      `${rate(used)} % of the file system of data.dir are used. From ${rate(most)} % on events are refused, until it is below ${rate(resume)} %.`,
    ),
    table(
      "Disk and memory",
      ["What", { text: "Now", number: true }],
      [
        ["Spool: sealed segments on their way to the archive", bytes(status.spool_bytes)],
        ["Memory of the process", bytes(status.resident_memory_bytes)],
      ],
    ),
  ];
}

function progress(status) {
  const right = (text) => ({ text, number: true });
  const done = { archive: status.events.archived, aggregate: status.events.aggregated };
  const rows = sinks(status).map((sink) => [
    sink,
    count(status.counters.consumed[sink] ?? 0),
    count(done[sink]),
    count(lagOf(status, sink)),
  ]);
  const lags = status.lag.map(({ sink, topic, partition, records }) => [`${sink}, ${topic} ${partition}`, count(records)]);
  const behind = status.lag.filter(({ records }) => records > 0).length;
  return [
    make(
      "p",
      { className: "where" },
      `Archive: ${status.archive}`,
      make("br"),
      `Store of aggregates: ${status.store}`,
      make("br"),
      `Log: ${status.queue.kind}, topic ${status.queue.topic}`,
    ),
    table("Progress of each sink since the process started", ["Sink", right("Read"), right("Durable"), right("Lag")], rows),
    make(
      "details",
      { open: lags.length <= 16 },
      make("summary", {}, `By partition: ${plural(behind, "partition")} of ${lags.length} behind`),
      table("Lag by sink and partition", ["Sink and partition", right("Records")], lags),
    ),
  ];
}

function parts(status) {
  const state = (kind, text) => make("span", { className: `state ${kind}` }, text);
  const kinds = { running: "good", starting: "warn", paused: "warn" };
  const actors = Object.entries(status.actors).map(([name, { state: of, reason }]) => [
    name,
    state(kinds[of] ?? "bad", of),
    count(status.counters.restarts[name] ?? 0),
    reason ?? "",
  ]);
  const dependencies = Object.entries(status.dependencies).map(([name, { available, reason }]) => [
    name,
    state(available ? "good" : "bad", available ? "available" : "away"),
    reason ?? NOTHING,
  ]);
  return [
    table("Actors", ["Actor", "State", { text: "Restarts", number: true }, "Reason"], actors, { seen: true }),
    table("Dependencies", ["Dependency", "State", "Reason"], dependencies, { seen: true }),
  ];
}
