// A line chart of ten minutes, with a scale, a time axis, and the value under the pointer.

import { NONE, duration } from "./format.js";
import { h, write } from "./dom.js";
import { svg } from "./svg.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [52, 8, 8, 22]; // room for the scales
const HEIGHT = 170;

/** The smallest round number that is at least `value` and `least`. */
export function roof(value, least = 1) {
  const wanted = Math.max(value, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= wanted * 0.999);
}

/** The SVG path through `points` [{x, y} or null], with gaps at null. */
export function path(points) {
  let pen = "M";
  let made = "";
  for (const point of points) {
    if (point) made += `${pen}${point.x.toFixed(1)} ${point.y.toFixed(1)}`;
    pen = point ? "L" : "M";
  }
  return made;
}

export class Chart {
  #series = [];
  #chosen = null; // index of the selected point
  #figure;
  #plot = svg("svg", { class: "plot", tabindex: "0", role: "img" });
  #value = h("b");
  #when = h("small", { className: "soft" });

  /** A chart in `figure`. `write` formats a value with its unit; `least` is the smallest maximum of the scale. */
  constructor(figure, { title, write, least }) {
    Object.assign(this, { title, write, least });
    this.#figure = figure;
    figure.append(h("figcaption", {}, h("span", { textContent: title }), this.#value, this.#when), this.#plot);
    new ResizeObserver(() => this.#redraw()).observe(figure);
    this.#plot.addEventListener("pointermove", (event) => this.#choose(this.#at(event)));
    this.#plot.addEventListener("pointerleave", () => this.#choose(null));
    this.#plot.addEventListener("blur", () => this.#choose(null));
    this.#plot.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Draw [{at, value}] at equal intervals; the last one is the present. */
  show(series) {
    this.#series = series;
    this.#redraw();
  }

  #onKey(event) {
    const last = this.#series.length - 1;
    const from = this.#chosen ?? last;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#choose(to === null ? null : Math.min(last, Math.max(0, to)));
  }

  #at(event) {
    const box = this.#plot.getBoundingClientRect();
    const part = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    return Math.min(this.#series.length - 1, Math.max(0, Math.round(part * (this.#series.length - 1))));
  }

  #choose(index) {
    this.#chosen = index;
    this.#redraw();
  }

  #redraw() {
    const width = this.#figure.clientWidth - 2; // the CSS width, so that text is not stretched
    const series = this.#series;
    if (width < LEFT + RIGHT + 20 || !series.length) return;
    const values = series.map(({ value }) => value).filter((value) => value !== null);
    const top = roof(Math.max(0, ...values), this.least);
    const x = (index) => LEFT + ((width - LEFT - RIGHT) * index) / (series.length - 1);
    const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * value) / top;
    const points = series.map(({ value }, index) => (value === null ? null : { x: x(index), y: y(value) }));
    const parts = [0, 0.5, 1].flatMap((part) => [
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(top * part), y2: y(top * part) }),
      svg("text", { class: "scale", x: LEFT - 8, y: y(top * part) + 4, "text-anchor": "end" }, this.write(top * part)),
    ]);
    [["10 min ago", 0, "start"], ["5 min ago", 0.5, "middle"], ["now", 1, "end"]].forEach(([text, part, anchor]) => {
      parts.push(svg("text", { class: "scale", x: LEFT + (width - LEFT - RIGHT) * part, y: HEIGHT - 4, "text-anchor": anchor }, text));
    });
    parts.push(...stretches(points).map((run) => svg("path", { class: "area", d: `${path(run)}L${run.at(-1).x} ${y(0)}L${run[0].x} ${y(0)}Z` })));
    parts.push(svg("path", { class: "line", d: path(points) }));
    const chosen = this.#chosen ?? series.length - 1;
    if (this.#chosen !== null) parts.push(svg("line", { class: "cross", x1: x(chosen), x2: x(chosen), y1: TOP, y2: HEIGHT - BOTTOM }));
    if (points[chosen]) parts.push(svg("circle", { class: "dot", cx: points[chosen].x, cy: points[chosen].y, r: 3.5 }));
    this.#plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#plot.replaceChildren(...parts);
    this.#describe(values, series[chosen]);
  }

  #describe(values, { at, value }) {
    const ago = (this.#series.at(-1).at - at) / 1000;
    write(this.#value, value === null ? NONE : this.write(value));
    write(this.#when, this.#chosen === null || ago === 0 ? "now" : `${duration(ago)} ago`);
    const most = values.length ? `at most ${this.write(Math.max(...values))} in the last 10 minutes` : "nothing measured";
    this.#plot.setAttribute("aria-label", `${this.title}: ${this.#value.textContent} ${this.#when.textContent}, ${most}`);
  }
}

/** The sequences of `points` between gaps. */
function stretches(points) {
  const runs = [[]];
  for (const point of points) {
    if (point) runs.at(-1).push(point);
    else if (runs.at(-1).length) runs.push([]);
  }
  return runs.filter((run) => run.length);
}
