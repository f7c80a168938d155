// Each aggregate as a chart over time, its numbers as a table beside it, and as CSV.

import { ask, askExactly, askJson, withQuery } from "./api.js";
import { Chart, last, least, mean, most, total } from "./chart.js";
import { count, drawn, lengthOf, measured, moment, plural, rate, short, span, text } from "./format.js";
import { at, isDisabled, make, note, table, whileDisabled } from "./page.js";

const RANGES = [
  ["15m", "15 minutes", 900],
  ["1h", "1 hour", 3600],
  ["6h", "6 hours", 21600],
  ["24h", "24 hours", 86400],
  ["7d", "7 days", 604800],
  ["30d", "30 days", 2592000],
  ["365d", "1 year", 31536000],
];
const STEPS = [1, 5, 10, 15, 30, 60, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800, 2592000];
/** Points of a chart that are told apart, and lines that are. */
const POINTS = 500;
const LINES = 8;
/** Rows of one question, and how often the next ones are asked for. */
const PAGE = 2000;
const PAGES = 10;
/** Rows of the table at first. */
const SHOWN = 100;
const ALL = "all events";

let aggregates = [];
let asked = 0;
/** What was answered last. */
let answered;
let chart;

export async function enter() {
  if (aggregates.length > 0) return;
  try {
    ({ aggregates } = await askJson("/v1/aggregates"));
  } catch (error) {
    return note(at("aggregates-note"), error.message, true);
  }
  if (aggregates.length === 0)
    return note(at("aggregates-note"), "There are none: an [[aggregate]] in the configuration makes one.");
  at("aggregate").replaceChildren(...aggregates.map(({ name }) => make("option", { value: name }, name)));
  choose();
  answer();
}

const chosen = () => aggregates.find(({ name }) => name === at("aggregate").value) ?? aggregates[0];
const windowOf = (aggregate) => lengthOf(aggregate.window);
/** What is measured under this label: `count`, `sum`, `top` … */
const functionOf = (aggregate, label) => (label === "count" ? label : aggregate.about?.[label]?.function);

/** What can be asked of the aggregate. */
function choose() {
  const aggregate = chosen();
  const shown = RANGES.filter(([, , length]) => length >= windowOf(aggregate) * 2);
  const before = at("range").value;
  at("range").replaceChildren(...[...shown, ["custom", "From … to …"]].map(([value, label]) => make("option", { value }, label)));
  const wished = [before, "1h", shown[0]?.[0], "custom"].find((value) =>
    [...at("range").options].some((option) => option.value === value),
  );
  at("range").value = wished;
  at("measure").replaceChildren(...aggregate.measures.map((value) => make("option", { value }, value)));
  const fields = (aggregate.group_by ?? []).map((field, number) => {
    const box = make("input", { type: "checkbox", id: `group-${number}`, value: field, checked: true });
    return make("div", { className: "check" }, box, make("label", { htmlFor: box.id }, field));
  });
  at("groups").replaceChildren(
    make("legend", {}, "Group by"),
    ...(fields.length > 0 ? fields : [make("p", { className: "hint" }, "It has no groups.")]),
  );
  const filters = (aggregate.group_by ?? []).map((field, number) => {
    const input = make("input", { id: `where-${number}`, spellcheck: false, autocapitalize: "off" });
    input.dataset.field = field;
    return make("div", {}, make("label", { htmlFor: input.id }, field), input);
  });
  at("where").replaceChildren(make("legend", {}, "Only where"), ...filters);
  at("where").hidden = filters.length === 0;
  steps();
}

const rangeLength = () => RANGES.find(([value]) => value === at("range").value)?.[2] ?? 86400;

/** Multiples of the window, the one first that gives a chart that can be read. */
function steps() {
  const window = windowOf(chosen());
  const before = at("step").value;
  for (const element of document.querySelectorAll(".custom")) element.hidden = at("range").value !== "custom";
  const length = rangeLength();
  const able = [window, ...STEPS.filter((step) => step > window && step % window === 0 && step <= length)];
  at("step").replaceChildren(...able.map((step) => make("option", { value: span(step) }, span(step))));
  const best = able.find((step) => length / step <= 120) ?? able.at(-1);
  at("step").value = able.some((step) => span(step) === before && length / step <= POINTS) ? before : span(best);
}

const boxes = () => [...at("groups").querySelectorAll("input")];

/** What is asked. */
function parameters() {
  const isCustom = at("range").value === "custom";
  const groups = boxes()
    .filter(({ checked }) => checked)
    .map(({ value }) => value);
  const where = [...at("where").querySelectorAll("input")]
    .filter(({ value }) => value !== "")
    .map((input) => `${input.dataset.field}:${input.value}`);
  return {
    from: isCustom ? at("from").value.trim() : `-${at("range").value}`,
    to: isCustom ? at("to").value.trim() : "now",
    step: at("step").value,
    where,
    groups,
  };
}

/** With `group_by` where it is not all of them: an empty one is the whole. */
function path(name, { groups, ...others }, more) {
  const isAll = groups.length === boxes().length;
  const asking = withQuery(`/v1/aggregates/${encodeURIComponent(name)}`, { ...others, ...more });
  return isAll ? asking : `${asking}&group_by=${encodeURIComponent(groups.join(","))}`;
}

async function answer() {
  const [aggregate, question, number] = [chosen(), parameters(), ++asked];
  const rows = [];
  let cursor;
  let isCut = false;
  note(at("aggregates-note"), "Asking …");
  try {
    for (let page = 0; page < PAGES; page += 1) {
      const found = await askExactly(path(aggregate.name, question, { limit: PAGE, cursor }));
      // Another question was asked meanwhile.
      if (number !== asked) return;
      rows.push(...found.rows);
      cursor = found.next;
      isCut = cursor !== undefined && cursor !== null;
      if (!isCut) break;
    }
  } catch (error) {
    if (number !== asked) return;
    at("answer").hidden = true;
    return note(at("aggregates-note"), error.message, true);
  }
  const cut = isCut
    ? `These are the first ${count(rows.length)} rows: choose a larger step, fewer groups, or a shorter range.`
    : "";
  note(
    at("aggregates-note"),
    rows.length === 0 ? "There is nothing in this range." : `${plural(rows.length, "row")}. ${cut}`.trim(),
  );
  answered = [aggregate, question, rows];
  draw(...answered);
}

/** What stands in the answer under this label. */
const valueOf = (row, measure) => (measure === "count" ? row.count : row.measures?.[measure]);
const nameOf = (group) =>
  Object.entries(group)
    .map(([, value]) => text(value))
    .join(", ") || ALL;

function draw(aggregate, question, rows) {
  const measure = at("measure").value;
  at("answer").hidden = rows.length === 0;
  if (rows.length === 0) return;
  at("answer-title").replaceChildren(`${aggregate.name}: ${measure} `, make("small", {}, `by ${question.step}`));
  const canDraw = rows.some((row) => drawn(valueOf(row, measure)) !== null);
  at("answer-chart").hidden = !canDraw;
  if (canDraw) drawChart(aggregate, rows, measure, question.step);
  drawRows(aggregate, question.groups, rows);
}

function drawChart(aggregate, rows, measure, step) {
  // Where nothing was, there were none; the largest or the mean of nothing is nothing.
  const measures = functionOf(aggregate, measure);
  const isSum = ["count", "sum", "unique"].includes(measures);
  const times = timesOf(rows, lengthOf(step));
  const index = new Map(times.map((time, at) => [time, at]));
  const groups = new Map();
  for (const row of rows) {
    const name = nameOf(row.group);
    if (!groups.has(name)) groups.set(name, new Array(times.length).fill(isSum ? 0 : null));
    groups.get(name)[index.get(Date.parse(row.window_start) / 1000)] = drawn(valueOf(row, measure));
  }
  const size = (values) => values.reduce((sum, value) => sum + Math.abs(value ?? 0), 0);
  const largest = [...groups].sort(([, one], [, other]) => size(other) - size(one));
  const series = largest.slice(0, LINES).map(([name, values]) => ({ name, values, isStepped: isSum && largest.length === 1 }));
  const all = isSum && measures !== "unique" ? [["Sum", total]] : [];
  const columns = [...all, ["Last", last], ["Mean", mean], ["Least", least], ["Most", most]];
  const format = (value) => (Number.isInteger(value) ? count(value) : rate(value));
  chart ??= new Chart(at("answer-chart"), { height: 300, short, format, columns });
  chart.set(times, series, { caption: `${measure} by group`, columns });
  at("answer-note").textContent =
    largest.length > LINES ? `The ${LINES} largest of ${count(largest.length)} groups; the table has all.` : "";
}

/** The starts of all steps from the first row's to the last one's, where they are evenly apart. */
function timesOf(rows, step) {
  const known = new Set(rows.map((row) => Date.parse(row.window_start) / 1000));
  const [first, end] = [[...known].reduce((a, b) => Math.min(a, b)), [...known].reduce((a, b) => Math.max(a, b))];
  const areEven = step < 86400 && (end - first) / step <= 20 * POINTS && [...known].every((time) => (time - first) % step === 0);
  if (areEven) for (let time = first; time < end; time += step) known.add(time);
  return [...known].sort((one, other) => one - other);
}

function drawRows(aggregate, groups, rows) {
  const there = new Set(rows.flatMap((row) => Object.keys(row.measures ?? {})));
  const measures = aggregate.measures.filter((label) => there.has(label));
  const headings = [
    "From",
    ...groups,
    { text: "count", number: true },
    ...measures.map((name) => ({ text: name, number: functionOf(aggregate, name) !== "top" })),
  ];
  const newest = [...rows].sort(
    (one, other) => Date.parse(other.window_start) - Date.parse(one.window_start) || other.count - one.count,
  );
  const cells = ({ window_start: start, group, count: number, measures: of, errors }) => [
    moment(start),
    ...groups.map((field) => text(group[field])),
    count(number),
    ...measures.map((name) => measured(of?.[name], errors?.[name])),
  ];
  const fill = (number) => {
    const parts = [table(`Rows of ${aggregate.name}, the newest first`, headings, newest.slice(0, number).map(cells))];
    if (newest.length > number) {
      const button = make("button", { type: "button" }, `Show more (${plural(newest.length - number, "row")} left)`);
      button.addEventListener("click", () => {
        fill(number + 10 * SHOWN);
        at("rows").querySelector(".scrolled").focus({ preventScroll: true });
      });
      parts.push(button);
    }
    at("rows").replaceChildren(...parts);
  };
  fill(SHOWN);
}

/** All rows of the question, as the daemon writes them. */
async function download() {
  const { name } = chosen();
  try {
    const parts = [];
    let next = path(name, parameters(), { format: "csv", limit: PAGE * PAGES });
    while (next && parts.length < PAGES) {
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

at("aggregate").addEventListener("change", () => {
  choose();
  answer();
});
at("range").addEventListener("change", steps);
at("measure").addEventListener("change", () => answered?.[0] === chosen() && draw(...answered));
at("question").addEventListener("submit", (event) => {
  event.preventDefault();
  answer();
});
at("csv").addEventListener("click", () => isDisabled(at("csv")) || whileDisabled(at("csv"), download));
