/* One group of a layer on its grid: each weight is a dot, and the bell that they make snaps to the teeth of the format.
   Rounded to nearest, as a knob shows it at once. A click, or an arrow key, leads to another group. */
import { bottomAxis, em, inks, share, surface, ticks, tween, widthOf } from "../weights/canvas.js";
import { label } from "./formats.js";
import { round } from "./tensor.js";

const SIDE = 16,
  TOP = 8,
  BOTTOM = () => em(2.25),
  MOVE_MS = 300;

export class Comb {
  #at = 0;
  #shown = null;
  #dots = [];
  #stop = () => {};

  constructor(canvas, output) {
    Object.assign(this, { canvas, output });
    canvas.onclick = () => this.#move(1);
    canvas.onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (by) {
        event.preventDefault();
        this.#move(by);
      }
    };
  }

  #move(by) {
    const { asked } = this.#shown ?? {};
    if (!asked) return;
    this.#at += by;
    asked.told(this.draw(asked));
  }

  /** Draws a group of `size` weights of a layer in a format; returns what it shows, in words. `told` takes those of another group. */
  draw(asked) {
    const { tensor, form, size, score, layer } = asked,
      groups = tensor.w.length / size,
      same = this.#shown?.asked.layer === layer && this.#shown.asked.size === size;
    if (!same) this.#at = Math.floor(groups / 2);
    this.#at = (this.#at + groups) % groups;
    const start = this.#at * size,
      dense = tensor.w.subarray(start, start + size);
    const kept = form.pattern
        ? tensor.values({ ...form, width: "" }, score).slice(start, start + size)
        : dense.slice(),
      now = kept.slice();
    if (form.width) round(now, form.bits, size);
    const most = kept.reduce((high, w) => Math.max(high, Math.abs(w)), 0) || 1,
      zero = 2 ** (form.bits - 1);
    const teeth = form.width
      ? Array.from({ length: 2 * zero }, (_, code) => ((code - zero) * most) / (zero - 0.5))
      : [];
    const reach = 1.04 * Math.max(...dense.map(Math.abs), ...teeth.map(Math.abs));
    const dot = Math.min(em(0.5), 0.6 * Math.sqrt((widthOf(this.canvas) * asked.height) / size)); // wide; of many less
    this.#shown = { asked, dense, teeth, reach, dot };
    const before = same && this.#dots.length === size ? this.#dots : this.#stacks(dense, true),
      after = this.#stacks(now, !form.width);
    this.#stop();
    this.#stop = tween(
      (part) =>
        this.#paint(
          before.map(([w, high], i) => [
            w + (after[i][0] - w) * part,
            high + (after[i][1] - high) * part,
          ]),
        ),
      MOVE_MS,
    );
    const norm = (values) => Math.sqrt(values.reduce((sum, w) => sum + w * w, 0)),
      error = norm(now.map((w, i) => w - dense[i])) / (norm(dense) || 1);
    const used = new Set(now).size,
      row = Math.floor(start / tensor.columns),
      from = start % tensor.columns;
    this.output.textContent = `Row ${row}, inputs ${from} to ${from + size - 1}`;
    return form.width || form.pattern
      ? `${share(error)} error at ${label(form, true)}, ${used} values used`
      : `${size} weights in 16 bits: choose fewer`;
  }

  /** Of each weight its place and its height in a stack, in dots; `loose` ones stand in columns one dot wide. */
  #stacks(values, loose) {
    const { reach, dot } = this.#shown,
      across = Math.round((widthOf(this.canvas) - 2 * SIDE) / dot),
      heights = new Map();
    const order = Array.from(values.keys()).sort((a, b) => values[a] - values[b]),
      stacked = new Array(values.length);
    for (const i of order) {
      const column = Math.round(((values[i] + reach) / (2 * reach)) * across),
        high = heights.get(column) ?? 0;
      heights.set(column, high + 1);
      stacked[i] = [loose ? (2 * reach * column) / across - reach : values[i], high];
    }
    return stacked;
  }

  #paint(dots) {
    this.#dots = dots;
    const { dense, teeth, reach, asked, dot: wide } = this.#shown,
      ink = inks(),
      area = surface(this.canvas, asked.height),
      { pen, width, height } = area,
      floor = height - BOTTOM();
    const x = Object.assign((w) => SIDE + ((w + reach) / (2 * reach)) * (width - 2 * SIDE), {
        middle: width / 2,
      }),
      first = this.#stacks(dense, true);
    const tall = 1 + Math.max(...dots.map(([, high]) => high), ...first.map(([, high]) => high)),
      step = Math.min(wide, (floor - TOP) / tall);
    const dot = ([w, high], size) => {
      pen.beginPath();
      pen.arc(x(w), floor - (high + 0.5) * step, size, 0, 2 * Math.PI);
      pen.fill();
    };
    Object.assign(pen, { fillStyle: ink.muted, globalAlpha: 0.35 });
    for (const tooth of teeth) pen.fillRect(x(tooth) - 0.5, TOP, 1, floor - TOP);
    Object.assign(pen, { fillStyle: ink.muted, globalAlpha: 0.25 });
    for (const each of first) dot(each, Math.max(1, wide / 2 - 0.5));
    Object.assign(pen, { fillStyle: asked.colour, globalAlpha: 1 });
    for (const each of dots) dot(each, Math.max(1, wide / 2 - 0.5));
    bottomAxis(area, ink, ticks(-reach, reach, 6), x, "Weight (lines: the grid, grey: before)");
  }
}
