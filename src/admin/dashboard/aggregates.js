// Each aggregate as a chart over time, its numbers as a table beside it, and as CSV.

import { ask, askExactly, askJson } from "./api.js";
import { Chart, last, least, mean, most, total } from "./chart.js";
import { count, drawn, lengthOf, measured, plural, rate, short, text, timesBy } from "./format.js";
import { at, isDisabled, make, note, table, whileDisabled } from "./page.js";
import { functionOf, offer, pathOf, question, suggest, valueOf } from "./question.js";

/** Lines of a chart that are told apart. */
const LINES = 8;
/** Points of a chart, those included where nothing was. */
const POINTS = 10_000;
/** Rows of one question, and how often the next ones are asked for. */
const PAGE = 5000;
const PAGES = 4;
/** Of one file. */
const FILE_PAGE = 20_000;
const FILE_PAGES = 10;
/** Rows of the table at first. */
const SHOWN = 100;
/** Bytes of a path that every server takes. */
const PATH = 6000;
/** Below it a mean is shown to the sixth place. */
const ROUNDED = 1e9;
/** Milliseconds from one answer to the next, for who wants to be kept up to date. */
const AGAIN = 5000;
const ALL = "all events";
/** The group of all beyond `max_groups`, in each of its fields. */
const OTHER = "…other";

let listed = "";
/** How often the view was entered: what an earlier time still waits for is nobody's any more. */
let entered = 0;
/** When the list could not be had, of the last time. */
let failedAt;
let asked = 0;
/** Until the last question is answered; what was asked, where there is an answer. */
let asking;
let isAsking = false;
let answered;
/** Rows of the table, and whether it is the same one that its reader was at. */
let shown = SHOWN;
let isSame = false;
let chart;
let status;
/** Resolved by the first status, which says whether there is something to ask, or by the end of a stream that had none. */
let settle;
let isSettled = false;
const settled = new Promise((resolve) => {
  settle = () => {
    isSettled = true;
    resolve();
  };
});

/** The next status of the stream. What is shown is asked anew where it may be otherwise by now. */
export function take(next) {
  const isOther = status && (next.pid !== status.pid || next.uptime_seconds < status.uptime_seconds);
  const before = missing();
  status = next;
  settle();
  again(isOther || missing() !== before);
}

/** The stream ended: nobody waits for its first status any more. */
export function lose() {
  settle();
  again(false);
}

/** Asks anew what is shown, where there is a reason, or where the list could not be had and some time is over. */
function again(isDue) {
  if ((isDue || Date.now() - failedAt >= AGAIN) && !at("aggregates").hidden) enter();
}

/** Why there is nothing to ask here. */
function missing() {
  if (status?.store === "none") return 'store.kind is "none": this daemon keeps no aggregates.';
  if (status && !status.roles.includes("aggregator"))
    return `This process (roles: ${status.roles.join(", ")}) does not aggregate: open the dashboard of one with the role aggregator.`;
}

export async function enter() {
  const number = ++entered;
  const isMeant = () => number === entered && !at("aggregates").hidden;
  if (!isSettled) note(at("aggregates-note"), "Waiting for the daemon …");
  await settled;
  if (!isMeant()) return;
  let aggregates = [];
  let why = missing();
  failedAt = undefined;
  try {
    if (!why) ({ aggregates } = await askJson("/v1/aggregates"));
    if (aggregates.length === 0) why ??= "There are none: an [[aggregate]] in the configuration makes one.";
  } catch (error) {
    why = error.message;
    if (isMeant()) failedAt = Date.now();
  }
  if (!isMeant()) return;
  at("question").hidden = why !== undefined;
  if (why) {
    asked += 1;
    at("answer").hidden = true;
    return note(at("aggregates-note"), why, true);
  }
  // What was chosen stays, unless the daemon has others by now.
  if (listed !== JSON.stringify(aggregates)) offer(aggregates);
  listed = JSON.stringify(aggregates);
  asking = answer();
}

/** Rows of this path, and of the pages behind it. */
async function pages(path, isMeant, most = PAGES) {
  const found = { rows: [], isCut: false };
  for (let next, page = 0; page < most; page += 1) {
    const cursor = next ? `&cursor=${encodeURIComponent(next)}` : "";
    const answer = await askExactly(path + cursor);
    if (!isMeant()) return found;
    found.rows.push(...answer.rows);
    [found.from, found.to] = [answer.from, answer.to];
    next = answer.next;
    found.isCut = next !== undefined && next !== null;
    if (!found.isCut) break;
  }
  return found;
}

async function answer({ isAgain = false } = {}) {
  const [of, number] = [question(), ++asked];
  const isMeant = () => number === asked;
  if (!isAgain) {
    note(at("aggregates-note"), "Asking …");
    shown = SHOWN;
  }
  [isAsking, isSame, answered] = [true, isAgain, undefined];
  try {
    // Relative times are rounded outwards to the steps: all that is shown is of the same range.
    const bounds = await pages(pathOf(of, { limit: 1 }), isMeant, 1);
    if (!isMeant()) return;
    [of.from, of.to] = [bounds.from, bounds.to ?? of.to];
    // A row a group says which ones are drawn.
    const totals = await pages(pathOf(of, { step: "all", limit: PAGE }), isMeant, 1);
    if (!isMeant()) return;
    const seconds = (Date.parse(totals.to) - Date.parse(totals.from)) / 1000;
    const events = totals.rows.reduce((sum, row) => sum + row.count, 0);
    const most = Math.min(events, (totals.rows.length * seconds) / lengthOf(of.step));
    const isLarge = totals.isCut || most > PAGE * PAGES;
    const needsAll = of.order === "new" || of.isBySteps;
    const narrowed = isLarge && !needsAll ? pathOf(of, { limit: PAGE, where: ofFirst(totals.rows, of) }) : undefined;
    const isNarrowed = narrowed !== undefined && narrowed.length < PATH;
    const steps = await pages(isNarrowed ? narrowed : pathOf(of, { limit: PAGE }), isMeant);
    if (!isMeant()) return;
    answered = of;
    draw(of, totals, { ...steps, isNarrowed });
  } catch (error) {
    if (!isMeant()) return;
    at("answer").hidden = true;
    note(at("aggregates-note"), error.message, true);
  } finally {
    if (isMeant()) isAsking = false;
  }
}

/** Conditions that the groups meet that are drawn; others may meet them as well, where there are several fields. */
function ofFirst(rows, { groups, where }) {
  const first = rows.slice(0, LINES);
  const values = (field) => [...new Set(first.map(({ group }) => valueOf(group[field])))].map((value) => [field, value]);
  return [...where.filter(([field]) => !groups.includes(field)), ...groups.flatMap(values)];
}

/** What stands in the answer under this label. */
const numberOf = (row, measure) => (measure === "count" ? row.count : row.measures?.[measure]);
const keyOf = ({ group }) => JSON.stringify(Object.values(group));
function nameOf({ group }) {
  const values = Object.values(group).map(text);
  return (values.every((value) => value === OTHER) ? values.slice(0, 1) : values).join(", ") || ALL;
}
const startOf = ({ window_start: start }) => Date.parse(start) / 1000;

function draw(of, totals, steps) {
  const { aggregate, measure, step } = of;
  at("answer").hidden = totals.rows.length === 0;
  if (totals.rows.length === 0)
    return note(at("aggregates-note"), "There is nothing in this range: choose a longer one, or a filter that more events meet.");
  suggest(totals.rows);
  const times = timesBy(lengthOf(step), aggregate.time_zone);
  // Where a group begins is known where all steps are.
  const hasBegins = !steps.isNarrowed && !steps.isCut;
  const begins = new Map();
  if (hasBegins)
    for (const row of steps.rows) begins.set(keyOf(row), Math.min(begins.get(keyOf(row)) ?? Infinity, startOf(row)));
  let groups = totals.rows;
  if (of.order === "new" && hasBegins)
    groups = [...groups].sort((one, other) => (begins.get(keyOf(other)) ?? 0) - (begins.get(keyOf(one)) ?? 0));
  at("answer-title").replaceChildren(`${aggregate.name}: ${measure} `, make("small", {}, `in steps of ${step}`));
  drawChart(of, groups, steps, times);
  if (of.isBySteps) drawSteps(of, steps.rows, times);
  else drawGroups(of, groups, hasBegins ? begins : undefined, times);
  const inexact = totals.rows.reduce((sum, row) => sum + (row.inexact ?? 0), 0);
  const said = [
    `${times.range(totals.from, totals.to)}: ${totals.isCut ? "more than " : ""}${plural(totals.rows.length, "group")}.`,
    totals.isCut && "The table has the first ones: filter, or group by less.",
    of.isBySteps && `${plural(steps.rows.length, "row")}.`,
    steps.isCut && "The steps do not go on to the end: choose a larger step, a shorter range, or fewer groups.",
    of.order === "new" && !hasBegins && "Which are new is not known without all steps.",
    inexact > 0 && `${plural(inexact, "number")} of too many digits ${inexact === 1 ? "is" : "are"} in no measure.`,
  ];
  note(at("aggregates-note"), said.filter(Boolean).join(" "));
}

function drawChart({ aggregate, measure, step }, groups, { rows, from, to }, { of: when, zone }) {
  const measures = functionOf(aggregate, measure);
  // Where nothing was, there were none; the largest or the mean of nothing is nothing.
  const isSum = ["count", "sum", "unique"].includes(measures);
  const canDraw = groups.some((row) => drawn(numberOf(row, measure)) !== null);
  at("answer-chart").hidden = !canDraw;
  at("answer-note").textContent = canDraw
    ? groups.length > LINES
      ? `The first ${LINES} groups of the table are drawn.`
      : ""
    : `${measure} has no number that can be drawn: its values are in the table.`;
  if (!canDraw) return;
  const times = timesOf(rows, lengthOf(step), Date.parse(from) / 1000, Date.parse(to) / 1000);
  const index = new Map(times.map((time, at) => [time, at]));
  const lines = new Map(
    groups.slice(0, LINES).map((row) => [keyOf(row), { name: nameOf(row), values: new Array(times.length).fill(isSum ? 0 : null) }]),
  );
  for (const row of rows) {
    const line = lines.get(keyOf(row));
    if (line) line.values[index.get(startOf(row))] = drawn(numberOf(row, measure));
  }
  const series = [...lines.values()].map((line) => ({ ...line, isStepped: isSum && lines.size === 1 }));
  const columns = [
    ...(isSum && measures !== "unique" ? [["Sum", total]] : []),
    ["Last", last],
    ...(isSum ? [["Mean", mean]] : []),
    ["Least", least],
    ["Most", most],
  ];
  const format = (value) => (Number.isInteger(value) ? count(value) : rate(value));
  chart ??= new Chart(at("answer-chart"), { height: 300, short, format, columns });
  chart.set(times, series, { caption: `${measure} of the steps, by group`, columns, when, zone });
}

/** The starts of all steps of the range, where they are evenly apart; otherwise those where something was. */
function timesOf(rows, step, from, to) {
  const known = new Set(rows.map(startOf));
  const areEven = (to - from) / step <= POINTS && [...known].every((time) => (time - from) % step === 0);
  if (areEven) for (let time = from; time < to; time += step) known.add(time);
  return [...known].sort((one, other) => one - other);
}

/** The columns of numbers, that of the chosen measure first. */
function ofMeasures({ aggregate, measure }, rows) {
  const there = new Set(["count", ...rows.flatMap((row) => Object.keys(row.measures ?? {}))]);
  const measures = [measure, ...aggregate.measures.filter((label) => label !== measure)].filter((label) => there.has(label));
  const cell = (row, name) => {
    const value = numberOf(row, name);
    // Of a quotient no digit is the last one.
    const isRounded = functionOf(aggregate, name) === "avg" && Math.abs(drawn(value)) < ROUNDED;
    return measured(isRounded ? drawn(value) : value, row.errors?.[name]);
  };
  return {
    headings: measures.map((name) => ({ text: name, number: functionOf(aggregate, name) !== "top" })),
    cells: (row) => measures.map((name) => cell(row, name)),
  };
}

/** A row a group, of the whole range. */
function drawGroups(asked, rows, begins, { of: when }) {
  const { aggregate, groups, order } = asked;
  const { headings, cells } = ofMeasures(asked, rows);
  const fields = groups.length > 0 ? groups : ["Group"];
  const of = (row) => (groups.length > 0 ? groups.map((field) => text(row.group[field])) : [ALL]);
  const since = (row) => (begins ? [begins.has(keyOf(row)) ? when(begins.get(keyOf(row)) * 1000) : ""] : []);
  at("rows-title").textContent = "The whole range, by group";
  // What it is ordered by stands first.
  const ordered = (since, numbers) => (order === "new" ? [...since, ...numbers] : [...numbers, ...since]);
  fill(
    `Groups of ${aggregate.name}, of the whole range`,
    [...fields, ...ordered(begins ? ["first seen"] : [], headings)],
    rows,
    (row) => [...of(row), ...ordered(since(row), cells(row))],
  );
}

/** A row a step and group, the newest first. */
function drawSteps(asked, rows, { of: when }) {
  const { aggregate, groups } = asked;
  const { headings, cells } = ofMeasures(asked, rows);
  const newest = [...rows].sort((one, other) => startOf(other) - startOf(one) || other.count - one.count);
  at("rows-title").textContent = "Each step, by group, the newest first";
  fill(`Steps of ${aggregate.name}, the newest first`, ["From", ...groups, ...headings], newest, (row) => [
    when(startOf(row) * 1000),
    ...groups.map((field) => text(row.group[field])),
    ...cells(row),
  ]);
}

function fill(caption, headings, rows, cells) {
  const parts = [table(caption, headings, rows.slice(0, shown).map(cells))];
  if (rows.length > shown) {
    const button = make("button", { type: "button" }, `Show more (${plural(rows.length - shown, "row")} left)`);
    button.addEventListener("click", () => {
      [shown, isSame] = [shown + 10 * SHOWN, true];
      fill(caption, headings, rows, cells);
      at("rows").querySelector(".scrolled").focus({ preventScroll: true });
    });
    parts.push(button);
  }
  // One who reads it stays where they are.
  const old = at("rows").querySelector(".scrolled");
  const [top, left, isFocused] = [old?.scrollTop ?? 0, old?.scrollLeft ?? 0, old === document.activeElement];
  at("rows").replaceChildren(...parts);
  const scrolled = at("rows").querySelector(".scrolled");
  if (isSame) [scrolled.scrollTop, scrolled.scrollLeft] = [top, left];
  if (isSame && isFocused) scrolled.focus({ preventScroll: true });
}

/** All rows of the table, as the daemon writes them. */
async function download() {
  await asking;
  const of = answered ?? question();
  const { name } = of.aggregate;
  try {
    const parts = [];
    let next = pathOf(of, { ...(of.isBySteps ? {} : { step: "all" }), format: "csv", limit: FILE_PAGE });
    while (next && parts.length < FILE_PAGES) {
      const answer = await ask(next, { headers: { Accept: "text/csv" } });
      const text = await answer.text();
      // Each page has the names of the columns.
      parts.push(parts.length === 0 ? text : text.slice(text.indexOf("\n") + 1));
      next = /<([^>]*)>; rel="?next"?/.exec(answer.headers.get("link") ?? "")?.[1];
    }
    if (next)
      note(
        at("aggregates-note"),
        "The file has the first rows only: choose a larger step, fewer groups, or a shorter range.",
        true,
      );
    const url = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
    make("a", { href: url, download: `${name}.csv` }).click();
    // The browser has begun to save it by then.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    note(at("aggregates-note"), error.message, true);
  }
}

// What is chosen is asked at once; what is typed, when it is complete.
for (const id of ["aggregate", "range", "from", "to", "step", "measure", "order", "rows-of", "groups", "where"]) {
  at(id).addEventListener("change", () => {
    asking = answer();
  });
}
/** The same question, while somebody looks at its answer. */
setInterval(() => {
  const isSeen = at("question").offsetParent !== null && !document.hidden;
  if (isSeen && at("live").checked && !isAsking) asking = answer({ isAgain: true });
}, AGAIN);
at("question").addEventListener("submit", (event) => {
  event.preventDefault();
  asking = answer();
});
at("csv").addEventListener("click", () => isDisabled(at("csv")) || whileDisabled(at("csv"), download));
