/* One group of a layer on its grid: each weight is a dot, and their histogram snaps to the grid of the format.
   Rounded to nearest, as a knob shows it at once. A click, or an arrow key, leads to another group. */
import {
  axisScale,
  bottomAxis,
  em,
  inks,
  share,
  surface,
  ticks,
  tween,
  widthOf,
} from "../weights/canvas.js";
import { grid, round } from "./tensor.js";

/** @typedef {{tensor: import("./tensor.js").DenseTensor, form: import("./formats.js").Format, size: number,
      score: import("./tensor.js").Score, color: string, height: number, told: (words: string) => void}} Asked
    A group of `size` weights; `told` takes the words about it. */
/** @typedef {[weight: number, high: number]} Dot `high`: its place in a stack. */
/** @typedef {{asked: Asked, dense: Float32Array, teeth: number[], reach: number, dot: number}} Shown */

const SIDE = 16;
const TOP = 8;
const BOTTOM = () => em(2.25);
const MOVE_MS = 300;
/** @type {Record<string, number>} */
const MOVES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** @param {Float32Array} values */
const norm = (values) => Math.sqrt(values.reduce((sum, w) => sum + w * w, 0));
/** @param {ArrayLike<number>} values */
const largest = (values) => Array.from(values).reduce((high, w) => Math.max(high, Math.abs(w)), 0);

export class Comb {
  #at = 0;
  /** @type {Shown | null} */
  #shown = null;
  /** @type {Dot[]} */
  #dots = [];
  #stop = () => {};

  /** @param {HTMLCanvasElement} canvas @param {HTMLElement} output */
  constructor(canvas, output) {
    this.canvas = canvas;
    this.output = output;
    canvas.onclick = () => this.#move(1);
    canvas.onkeydown = (event) => {
      if (!MOVES[event.key]) return;
      event.preventDefault();
      this.#move(MOVES[event.key]);
    };
  }

  /** @param {number} by */
  #move(by) {
    if (!this.#shown) return;
    this.#at += by;
    this.draw(this.#shown.asked);
  }

  /** @param {Asked} asked */
  draw(asked) {
    const { tensor, form, size, score } = asked;
    const groups = tensor.w.length / size;
    const before = this.#shown?.asked;
    const same = before?.tensor.name === tensor.name && before.size === size;
    this.#at = same ? (this.#at + groups) % groups : Math.floor(groups / 2);
    const start = this.#at * size;
    const dense = tensor.w.slice(start, start + size);
    const kept = form.pattern ? tensor.pruned(form, score).slice(start, start + size) : dense;
    const now = kept.slice();
    if (form.width) round(now, form.bits, size);
    const { zero, scale } = grid(largest(kept) || 1, form.bits);
    const codes = form.width ? [...Array(2 * zero).keys()] : [];
    const teeth = codes.map((code) => (code - zero) * scale);
    const reach = 1.04 * Math.max(largest(dense), largest(teeth));
    const wide = 0.6 * Math.sqrt((widthOf(this.canvas) * asked.height) / size); // less wide where there are many
    this.#shown = { asked, dense, teeth, reach, dot: Math.min(em(0.5), wide) };
    this.#animate(this.#shown, now, same);
    const row = Math.floor(start / tensor.columns);
    const from = start % tensor.columns;
    this.output.textContent = `Row ${row}, inputs ${from} to ${from + size - 1}`;
    const error = norm(now.map((w, i) => w - dense[i])) / (norm(dense) || 1);
    asked.told(
      form.width || form.pattern
        ? `${share(error)} error at ${form.short}, ${new Set(now).size} values used`
        : `${size} weights in 16 bits: choose fewer`,
    );
  }

  /** Moves the dots to their weights, from where they were if they are the `same`.
      @param {Shown} shown @param {Float32Array} now @param {boolean} same */
  #animate(shown, now, same) {
    const dots = this.#dots.length === now.length ? this.#dots : null;
    const before = (same && dots) || this.#stacks(shown, shown.dense, true);
    const after = this.#stacks(shown, now, !shown.asked.form.width);
    this.#stop();
    this.#stop = tween((/** @type {number} */ part) => {
      this.#dots = before.map(([w, high], i) => [
        w + (after[i][0] - w) * part,
        high + (after[i][1] - high) * part,
      ]);
      this.#paint(shown);
    }, MOVE_MS);
  }

  /** The dot of each weight; `loose` ones stand in columns one dot wide.
      @param {Shown} shown @param {Float32Array} values @param {boolean} loose */
  #stacks({ reach, dot }, values, loose) {
    const across = Math.round((widthOf(this.canvas) - 2 * SIDE) / dot);
    /** @type {Map<number, number>} */
    const heights = new Map();
    /** @type {Dot[]} */
    const stacked = new Array(values.length);
    for (const i of [...values.keys()].sort((a, b) => values[a] - values[b])) {
      const column = Math.round(((values[i] + reach) / (2 * reach)) * across);
      const high = heights.get(column) ?? 0;
      heights.set(column, high + 1);
      stacked[i] = [loose ? (2 * reach * column) / across - reach : values[i], high];
    }
    return stacked;
  }

  /** @param {Shown} shown */
  #paint(shown) {
    const { dense, teeth, reach, asked, dot: wide } = shown;
    const ink = inks();
    const area = surface(this.canvas, asked.height);
    const { pen, width, height } = area;
    const floor = height - BOTTOM();
    const x = axisScale([-reach, reach], SIDE, width - SIDE);
    const first = this.#stacks(shown, dense, true);
    const tall = 1 + Math.max(...[...this.#dots, ...first].map(([, high]) => high));
    const step = Math.min(wide, (floor - TOP) / tall);
    const draw = (/** @type {Dot[]} */ dots) => {
      for (const [w, high] of dots) {
        pen.beginPath();
        pen.arc(x(w), floor - (high + 0.5) * step, Math.max(1, wide / 2 - 0.5), 0, 2 * Math.PI);
        pen.fill();
      }
    };
    Object.assign(pen, { fillStyle: ink.muted, globalAlpha: 0.35 });
    for (const tooth of teeth) pen.fillRect(x(tooth) - 0.5, TOP, 1, floor - TOP);
    pen.globalAlpha = 0.25;
    draw(first);
    Object.assign(pen, { fillStyle: asked.color, globalAlpha: 1 });
    draw(this.#dots);
    const title = "Weight (lines: the grid, gray: before)";
    bottomAxis(area, ink, ticks(-reach, reach, 6), x, title);
  }
}
