// A chart over time, with its numbers in a table beside it: for who does not see it, and in the place of a legend.

import { moment } from "./format.js";
import { make, show, table } from "./page.js";

const HEIGHT = 200;
/** Of ticks so far apart: the text of each, and what stands below it where a year or a day begins. */
const TIMES = [
  [31536000, "{YYYY}", null, null, null, null, null, null, 1],
  [2419200, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [86400, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
  [1, "{HH}:{mm}:{ss}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
];
/** Colours of series, of which the style sheet has a light and a dark one each. */
export const COLOURS = 8;

/** A colour of the style sheet as it is at present: a canvas knows no variables. */
function colour(name) {
  const probe = make("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

/** No line goes to a number that has none beside it. */
function alone(plot, at, isShown) {
  if (isShown) return null;
  const values = plot.data[at];
  return [...values.keys()].filter((one) => values[one] != null && values[one - 1] == null && values[one + 1] == null);
}

const faint = (color) => color.replace(/^rgb\((.*)\)$/, "rgba($1, 0.12)");

export class Chart {
  #place;
  #numbers;
  #options;
  #plot;
  #height;
  #data;
  #series = [];

  /**
   * @param {HTMLElement} element where it stands
   * @param {object} options `caption`, `columns`, `format` (of numbers in the table), `short` (of those on the axis), `height`,
   *   `when` (of times) and `zone` (of days, where it is not the reader's); `columns` are what the table says of each series
   */
  constructor(element, options) {
    this.#options = options;
    this.#height = options.height ?? HEIGHT;
    // What it shows stands in the table.
    this.#place = make("div", { className: "chart", "aria-hidden": "true" });
    this.#place.style.height = `${this.#height}px`;
    this.#numbers = make("div", { className: "legend" });
    element.replaceChildren(this.#place, this.#numbers);
    addEventListener("colours", () => this.#draw());
    new ResizeObserver(() => this.#size()).observe(this.#place);
  }

  /**
   * Shows these series: their names, and one list of numbers each, at these times (seconds since 1970); from now on by other
   * options, if there are some.
   */
  set(times, series, options = {}) {
    const { zone } = this.#options;
    this.#options = { ...this.#options, ...options };
    const is = (one, other) => one.name === other.name && one.isStepped === other.isStepped;
    const isSame = series.length === this.#series.length && series.every((each, at) => is(each, this.#series[at])) && zone === this.#options.zone;
    this.#series = series;
    this.#data = [times, ...series.map(({ values }) => values)];
    if (!isSame || !this.#plot) this.#draw();
    else if (this.#place.clientWidth > 0) this.#plot.setData(this.#data);
    this.#tell();
  }

  /** There is no half of an event. */
  get #isWhole() {
    return this.#series.every(({ values }) => values.every((value) => value == null || Number.isInteger(value)));
  }

  #tell() {
    const { caption, format, columns } = this.#options;
    const mark = (at) => make("span", { className: `mark series-${at % COLOURS}`, "aria-hidden": "true" });
    const headings = ["Series", ...columns.map(([text]) => ({ text, number: true }))];
    const rows = this.#series.map(({ name, values }, at) => {
      const known = values.filter((value) => value !== null && value !== undefined);
      return [make("span", {}, mark(at), name), ...columns.map(([, of]) => format(of(known, values)))];
    });
    show(this.#numbers, table(caption, headings, rows));
  }

  #size() {
    const width = this.#place.clientWidth;
    if (width === 0) return;
    if (!this.#plot) this.#draw();
    else if (this.#plot.width !== width) this.#plot.setSize({ width, height: this.#height });
  }

  #draw() {
    const width = this.#place.clientWidth;
    if (!this.#data || width === 0) return;
    this.#plot?.destroy();
    const { format, short = format, zone } = this.#options;
    const [ink, line] = [colour("quiet"), colour("line")];
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: ink, font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const series = this.#series.map(({ name, isStepped }, at) => {
      const stroke = colour(`series-${at % COLOURS}`);
      return {
        label: name,
        stroke,
        width: 2,
        spanGaps: false,
        fill: this.#series.length === 1 ? faint(stroke) : undefined,
        paths: isStepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
        points: { show: (plot) => plot.data[0].length < 3, filter: alone },
      };
    });
    this.#plot = new uPlot(
      {
        width,
        height: this.#height,
        ...(zone ? { tzDate: (time) => uPlot.tzDate(new Date(time * 1000), zone) } : {}),
        series: [{}, ...series],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false } },
        scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] } },
        axes: [
          { ...axis, values: TIMES },
          { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => (this.#isWhole && !Number.isInteger(tick) ? "" : short(tick))) },
        ],
        hooks: { setCursor: [(plot) => this.#point(plot)] },
      },
      this.#data,
      this.#place,
    );
    this.#place.append(this.#tip);
  }

  #tip = make("div", { className: "tip", hidden: true });

  /** What the pointer is at. */
  #point(plot) {
    const { idx, left } = plot.cursor;
    this.#tip.hidden = idx === null || idx === undefined || left < 0;
    if (this.#tip.hidden) return;
    const values = this.#series.map(({ name, values }, at) =>
      make(
        "div",
        {},
        make("span", { className: `mark series-${at % COLOURS}` }),
        `${name}: ${this.#options.format(values[idx])}`,
      ),
    );
    this.#tip.replaceChildren(make("div", {}, (this.#options.when ?? moment)(this.#data[0][idx] * 1000)), ...values);
    const over = plot.over.offsetLeft + left;
    this.#tip.classList.toggle("before", over > this.#place.clientWidth / 2);
    this.#tip.style.left = `${over}px`;
  }
}

export const last = (known, values = known) => values.at(-1) ?? null;
export const mean = (known) => (known.length > 0 ? known.reduce((sum, value) => sum + value, 0) / known.length : null);
export const most = (known) => (known.length > 0 ? known.reduce((most, value) => Math.max(most, value)) : null);
export const least = (known) => (known.length > 0 ? known.reduce((least, value) => Math.min(least, value)) : null);
export const total = (known) => (known.length > 0 ? known.reduce((sum, value) => sum + value, 0) : null);
