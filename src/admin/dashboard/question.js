// What is asked of an aggregate: the form, and the path that says the same.

import { withQuery } from "./api.js";
import { lengthOf, span, text } from "./format.js";
import { at, make } from "./page.js";

const RANGES = [
  ["15m", "Last 15 minutes", 900],
  ["1h", "Last hour", 3600],
  ["6h", "Last 6 hours", 21600],
  ["24h", "Last 24 hours", 86400],
  ["7d", "Last 7 days", 604800],
  ["30d", "Last 30 days", 2592000],
  ["365d", "Last year", 31536000],
];
const CUSTOM = ["custom", "From … to …", 86400];
const STEPS = [1, 5, 10, 15, 30, 60, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 604800, 2592000];
/** Points of a chart that can be read, and that can be told apart. */
const READABLE = 120;
const POINTS = 500;
/** Windows that a range has at first, so that there is something to see. */
const FIRST_WINDOWS = 24;
const HOUR = 3600;
/** Values of a field that are offered. */
const OFFERED = 100;

let aggregates = [];
/** The reader's own choice stays for the next aggregate, a default is each one's own. */
let hasChosenRange = false;
let hasChosenStep = false;

export const chosen = () => aggregates.find(({ name }) => name === at("aggregate").value) ?? aggregates[0];
const windowOf = (aggregate) => lengthOf(aggregate.window);
/** What is measured under this label: `count`, `sum`, `top` … */
export const functionOf = (aggregate, label) => (label === "count" ? label : aggregate.about?.[label]?.function);

/** These aggregates can be asked. */
export function offer(those) {
  const before = at("aggregate").value;
  aggregates = those;
  at("aggregate").replaceChildren(...aggregates.map(({ name }) => make("option", { value: name }, name)));
  if (aggregates.some(({ name }) => name === before)) at("aggregate").value = before;
  choose();
}

/** What can be asked of the aggregate. */
function choose() {
  const aggregate = chosen();
  at("definition").textContent = definition(aggregate);
  const able = [...RANGES.filter(([, , length]) => length >= windowOf(aggregate) * 2), CUSTOM];
  const before = at("range").value;
  at("range").replaceChildren(...able.map(([value, label]) => make("option", { value }, label)));
  const enough = Math.max(HOUR, FIRST_WINDOWS * windowOf(aggregate));
  const [first] = able.find(([, , length]) => length >= enough) ?? able[0];
  at("range").value = hasChosenRange && able.some(([value]) => value === before) ? before : first;
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
    const list = make("datalist", { id: `values-${number}` });
    const input = make("input", { id: `where-${number}`, spellcheck: false, autocapitalize: "off", autocomplete: "off" });
    input.setAttribute("list", list.id);
    input.dataset.field = field;
    return make("div", {}, make("label", { htmlFor: input.id }, field), input, list);
  });
  at("where").replaceChildren(make("legend", {}, "Only where it is (empty: any)"), ...filters);
  at("where").hidden = filters.length === 0;
  steps();
}

/** In words. */
function definition({ window, time_zone: zone, group_by: fields, filter }) {
  const conditions = Object.entries(filter ?? {}).map(([field, condition]) => `${field} ${required(condition)}`);
  const events = conditions.length > 0 ? `Events where ${conditions.join(" and ")}` : "All events";
  const by = fields.length > 0 ? `, by ${fields.join(", ")}` : "";
  return `${events}, in windows of ${span(lengthOf(window))}${zone ? ` (days of ${zone})` : ""}${by}.`;
}

function required(condition) {
  if (Array.isArray(condition)) return `is one of ${condition.map(text).join(", ")}`;
  if (condition === null || typeof condition !== "object") return `is ${text(condition)}`;
  const words = { min: "is at least", max: "is at most", prefix: "begins with" };
  return Object.entries(condition)
    .map(([key, value]) => (key === "exists" ? (value ? "is there" : "is missing") : `${words[key] ?? key} ${text(value)}`))
    .join(" and ");
}

const rangeLength = () => RANGES.find(([value]) => value === at("range").value)?.[2] ?? CUSTOM[2];

/** Multiples of the window, the one first that gives a chart that can be read. */
function steps() {
  const window = windowOf(chosen());
  const before = at("step").value;
  for (const element of document.querySelectorAll(".custom")) element.hidden = at("range").value !== "custom";
  const length = rangeLength();
  const able = [window, ...STEPS.filter((step) => step > window && step % window === 0 && step <= length)];
  at("step").replaceChildren(...able.map((step) => make("option", { value: span(step) }, span(step))));
  const best = able.find((step) => length / step <= READABLE) ?? able.at(-1);
  const stays = hasChosenStep && able.some((step) => span(step) === before && length / step <= POINTS);
  at("step").value = stays ? before : span(best);
}
const boxes = () => [...at("groups").querySelectorAll("input")];

/** What is asked at present. */
export function question() {
  const [aggregate, isCustom] = [chosen(), at("range").value === "custom"];
  const measure = at("measure").value;
  const fields = boxes();
  const filters = [...at("where").querySelectorAll("input")].filter(({ value }) => value !== "");
  return {
    aggregate,
    from: isCustom ? at("from").value.trim() : `-${at("range").value}`,
    to: isCustom ? at("to").value.trim() : "now",
    step: at("step").value,
    measure,
    // A list has no order.
    ordered: functionOf(aggregate, measure) === "top" ? "count" : measure,
    order: at("order").value,
    isBySteps: at("rows-of").value === "steps",
    groups: fields.filter(({ checked }) => checked).map(({ value }) => value),
    isAll: fields.every(({ checked }) => checked),
    where: filters.map((input) => [input.dataset.field, input.value]),
  };
}

/** Its path, by step or in all, with `group_by` where it is not all of them: an empty one is the whole. */
export function pathOf({ aggregate, from, to, step, ordered, order, groups, isAll, where }, more = {}) {
  const conditions = (more.where ?? where).map(([field, value]) => `${field}:${value}`);
  const ranked = more.step === "all" ? { order: `${order === "smallest" ? "" : "-"}${ordered}` } : {};
  const path = withQuery(`/v1/aggregates/${encodeURIComponent(aggregate.name)}`, {
    from,
    to,
    step,
    ...ranked,
    ...more,
    where: conditions,
  });
  return isAll ? path : `${path}&group_by=${encodeURIComponent(groups.join(","))}`;
}

/** Offers the values that were seen; those that were seen before stay while a filter hides them. */
export function suggest(rows) {
  for (const input of at("where").querySelectorAll("input")) {
    const known = new Set([...input.list.options].map(({ value }) => value));
    for (const { group } of rows) {
      const value = group[input.dataset.field];
      if (value !== undefined && known.size < OFFERED) known.add(valueOf(value));
    }
    input.list.replaceChildren(...[...known].map((value) => make("option", { value })));
  }
}

/** As `where` takes it: a string by its characters, all else by its JSON. */
export const valueOf = (value) => (typeof value === "string" ? value : JSON.stringify(value));

at("aggregate").addEventListener("change", choose);
at("range").addEventListener("change", () => {
  hasChosenRange = true;
  steps();
});
at("step").addEventListener("change", () => {
  hasChosenStep = true;
});
