/* The map of all layers: blocks from left to right, modules from top to bottom. */
import {
  bottomAxis,
  channels,
  diverging,
  em,
  inks,
  number,
  sequential,
  surface,
} from "./canvas.js";
import { shortName } from "./words.js";
/** @import {Range, Surface} from "./canvas.js" */

/**
 * Layers of a model. A tensor outside the blocks has a negative block and its own row.
 * @typedef {object} MapLayers
 * @property {number[]} blocks
 * @property {string[]} modules
 * @property {{block: number, module: string}[]} tensors
 * @property {(block: number, module: string) => number} at index of a tensor; -1 where there is none
 */
/**
 * @typedef {object} MapInput
 * @property {MapLayers} data
 * @property {number[]} values by tensor
 * @property {string} label of the values
 * @property {string} unit
 * @property {boolean} [even] colors diverge from 0
 * @property {number} picked
 * @property {boolean} [log] colors on a log scale
 * @property {Range} [ends] first and last value of the scale of colors; those of the values by default
 * @property {number[]} [named] tensors whose value is written into the cell
 * @property {ArrayLike<string | null | undefined> | null} [colors] in place of those of the values
 * @property {{words: string, color: string}[] | false | null} [key] the meaning of `colors`
 * @property {Set<number>} [chosen] all others are paler
 * @property {Set<number>} [pinned]
 * @property {number} [height]
 */
/** @typedef {{i: number, j: number}} Cell Column and row; may lie outside the cells. */
/** @typedef {{input: MapInput, across: number, down: number}} DrawnMap Width and height of a cell. */
/**
 * @typedef {object} MapEvents
 * @property {(t: number) => void} hover -1 beside the cells
 * @property {(t: number, keeps?: boolean) => void} pick
 * @property {(tensors: number[], adds: boolean) => void} [choose] a row, a column, or a rectangle that is drawn with the
 *   pointer or with Shift and arrows
 */

const LEFT = () => em(4.75);
const TOP = () => em(2.125);
const BOTTOM = () => em(2.25);
const MAX_PRINTED = 12; // blocks: figures fit into the cells
const HEIGHT = 336;
const MIN_ROW = 12;
const DOTS = 5; // pixels between the dots of a cell beyond the scale
const PALE = 0.35;
const DARK = 140; // colors below this brightness carry white text
const BAR_STEPS = 40;
/** Columns and rows by which an arrow key moves. @type {Record<string, [number, number]>} */
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Decimal logarithms; NaN for values that are not positive. @param {ArrayLike<number>} values */
export const logs = (values) => Array.from(values, (v) => (v > 0 ? Math.log10(v) : NaN));

/** The 2 % and 98 % quantile of the values, or the same to both sides of 0. @param {number[]} values
    @param {boolean} [even] @returns {Range} */
export function limits(values, even) {
  const sorted = values
    .filter(Number.isFinite)
    .map((v) => (even ? Math.abs(v) : v))
    .sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const low = sorted[Math.round(0.02 * (sorted.length - 1))];
  const high = sorted[Math.round(0.98 * (sorted.length - 1))];
  if (even) return [-(high || 1), high || 1];
  if (high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high))) return [low, high];
  const room = 0.1 * Math.abs(low) || 1;
  return [low - room, high + room];
}

/** Colors of values between limits. @param {CanvasRenderingContext2D} pen @param {Range} limits @param {boolean} [even]
    @returns {(value: number) => string} */
export function colorScale(pen, [low, high], even) {
  const middle = channels(pen, inks().paper);
  if (even) return (value) => diverging(value / high, middle);
  return (value) => sequential((value - low) / (high - low || 1));
}

/** Dots on a cell whose value is beyond the scale. @type {(pen: CanvasRenderingContext2D, left: number, top: number, width: number, height: number) => void} */
function dot(pen, left, top, width, height) {
  for (let x = left + DOTS / 2; x < left + width - 1; x += DOTS)
    for (let y = top + DOTS / 2; y < top + height - 1; y += DOTS) pen.fillRect(x, y, 1, 1);
}

export class LayerMap {
  /** @type {DrawnMap | null} */
  #drawn = null;
  #hovered = -1;
  /** First corner of a rectangle. @type {(Cell & {isBrushed?: boolean}) | null} */
  #from = null;

  /** @param {HTMLCanvasElement} canvas @param {MapEvents} on */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on;
    canvas.onpointermove = (event) => {
      if (event.buttons) this.#brush(event);
      this.#hover(event.pointerType === "touch" ? -1 : this.#tensorAt(event));
    };
    canvas.onpointerleave = () => this.#hover(-1);
    canvas.onpointerdown = (event) => {
      this.#from = on.choose && !event.button ? this.#cellAt(event) : null;
    };
    canvas.onclick = (event) => {
      this.#click(event);
      this.#from = null;
    };
    canvas.onkeydown = (event) => {
      const move = MOVES[event.key];
      if (!move) return;
      event.preventDefault();
      const next = this.#beside(move);
      if (next < 0) return;
      const isAdded = event.shiftKey && Boolean(on.choose);
      on.pick(next, isAdded);
      if (isAdded) on.choose?.([next], true);
    };
  }

  /** Frames a tensor that is hovered in another panel; -1 for none. @param {number} t */
  set hovered(t) {
    this.#hovered = t;
  }

  /** @param {number} t */
  #hover(t) {
    if (t === this.#hovered) return;
    this.#hovered = t;
    this.on.hover(t);
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const { choose, pick } = this.on;
    const t = this.#tensorAt(event);
    const line = choose ? this.#lineAt(event) : [];
    if (line.length) choose?.(line, event.shiftKey);
    else if (t < 0 || this.#from?.isBrushed) return;
    else if (event.shiftKey && choose) choose([t], true);
    else pick(t);
  }

  /** @param {MouseEvent} event */
  #cellAt({ offsetX, offsetY }) {
    if (!this.#drawn) return null;
    const { across, down } = this.#drawn;
    return { i: Math.floor((offsetX - LEFT()) / across), j: Math.floor((offsetY - TOP()) / down) };
  }

  /** The tensor under the pointer; -1 beside the cells. @param {MouseEvent} event */
  #tensorAt(event) {
    const cell = this.#cellAt(event);
    if (!cell || !this.#drawn) return -1;
    const { data } = this.#drawn.input;
    const isInside = cell.i in data.blocks && cell.j in data.modules;
    return isInside ? data.at(data.blocks[cell.i], data.modules[cell.j]) : -1;
  }

  /** Indices of the tensors that satisfy a test. @param {(block: number, module: string) => boolean} test */
  #tensorsWhere(test) {
    const tensors = this.#drawn?.input.data.tensors ?? [];
    return tensors.flatMap(({ block, module }, t) => (test(block, module) ? [t] : []));
  }

  /** All tensors of the row or column whose name is under the pointer. @param {MouseEvent} event */
  #lineAt(event) {
    const cell = this.#cellAt(event);
    if (!cell || !this.#drawn) return [];
    const { blocks, modules } = this.#drawn.input.data;
    const { i, j } = cell;
    if (i < 0 && j in modules) return this.#tensorsWhere((_, module) => module === modules[j]);
    if (j >= modules.length && i in blocks)
      return this.#tensorsWhere((block) => block === blocks[i]);
    return [];
  }

  /** Selects the rectangle from the point where the drag began. @param {PointerEvent} event */
  #brush(event) {
    const from = this.#from;
    const to = this.#cellAt(event);
    if (!from || !to || !this.#drawn) return;
    if (!from.isBrushed && to.i === from.i && to.j === from.j) return;
    from.isBrushed = true;
    const { blocks, modules } = this.#drawn.input.data;
    /** @type {(at: number, a: number, b: number) => boolean} */
    const isWithin = (at, a, b) => at >= Math.min(a, b) && at <= Math.max(a, b);
    const inside = this.#tensorsWhere(
      (block, module) =>
        block >= 0 &&
        isWithin(blocks.indexOf(block), from.i, to.i) &&
        isWithin(modules.indexOf(module), from.j, to.j),
    );
    if (inside.length) this.on.choose?.(inside, event.shiftKey);
  }

  /** Next tensor in a direction, skipping empty cells; -1 at the edge. @param {[number, number]} move */
  #beside([right, down]) {
    if (!this.#drawn) return -1;
    const { data, picked } = this.#drawn.input;
    const { block, module } = data.tensors[picked];
    let i = Math.max(0, data.blocks.indexOf(block)) + right;
    let j = data.modules.indexOf(module) + down;
    for (; i in data.blocks && j in data.modules; i += right, j += down) {
      const t = data.at(data.blocks[i], data.modules[j]);
      if (t >= 0) return t;
    }
    return -1;
  }

  /** @param {MapInput} input */
  draw(input) {
    const { data, values, even, log, height = HEIGHT } = input;
    const rows = data.modules.length;
    const area = surface(this.canvas, Math.max(height, TOP() + BOTTOM() + MIN_ROW * rows));
    const across = (area.width - LEFT() - 4) / data.blocks.length;
    const down = (area.height - TOP() - BOTTOM()) / rows;
    const scaled = log ? logs(values) : values;
    const ends = input.ends ?? limits(scaled, even);
    const color = colorScale(area.pen, ends, even);
    const drawn = { input, across, down };
    this.#drawn = drawn;
    this.#cells(drawn, area, scaled, color, ends);
    for (const t of [input.picked, this.#hovered]) this.#frame(drawn, area, t);
    this.#names(drawn, area);
    if (input.key) this.#key(area, input.key);
    else this.#bar(input, area, scaled, ends, color);
  }

  /** Left, top, width and height of a cell. @type {(drawn: DrawnMap, t: number) => [number, number, number, number]} */
  #boxOf({ input: { data }, across, down }, t) {
    const { block, module } = data.tensors[t];
    const left = LEFT() + Math.max(0, data.blocks.indexOf(block)) * across;
    const width = block < 0 ? data.blocks.length * across : across;
    return [left, TOP() + data.modules.indexOf(module) * down, width, down];
  }

  /** @type {(drawn: DrawnMap, area: Surface, scaled: number[], color: (value: number) => string, ends: Range) => void} */
  #cells(drawn, { pen, line }, scaled, color, [low, high]) {
    const { data, values, colors, chosen, pinned, named = [] } = drawn.input;
    const edge = inks().line; // sets dark cells apart from a dark card
    pen.textBaseline = "middle";
    pen.textAlign = "center";
    data.tensors.forEach((_, t) => {
      if (!colors && !Number.isFinite(scaled[t])) return;
      const [left, top, width, height] = this.#boxOf(drawn, t);
      pen.fillStyle = edge;
      pen.fillRect(left - 1, top - 1, width + 1, height + 1);
      pen.fillStyle = colors?.[t] ?? color(scaled[t]);
      pen.globalAlpha = !chosen?.size || chosen.has(t) ? 1 : PALE;
      pen.fillRect(left, top, Math.max(1, width - 1), height - 1);
      pen.globalAlpha = 1;
      const isPinned = pinned?.has(t);
      const isPrinted = !colors && data.blocks.length <= MAX_PRINTED && height > line;
      const [red, green, blue] = channels(pen);
      pen.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue < DARK ? "#fff" : "#14181F";
      if (!colors && (scaled[t] < low || scaled[t] > high)) dot(pen, left, top, width, height);
      const isNamed = named.includes(t) && Math.min(width, height) > 0.7 * line;
      if (!isPinned && !isPrinted && !isNamed) return;
      const text = isPinned ? "◆" : number(values[t]);
      pen.save();
      pen.translate(left + width / 2, top + height / 2);
      const isUpright = pen.measureText(text).width > width - 2 && height > width;
      if (isUpright) pen.rotate(-Math.PI / 2);
      pen.fillText(text, 0, 0, (isUpright ? height : width) - 4);
      pen.restore();
    });
  }

  /** Frames a tensor. @type {(drawn: DrawnMap, area: Surface, t: number) => void} */
  #frame(drawn, { pen }, t) {
    if (t < 0 || !drawn.input.data.tensors[t]) return;
    const [left, top, width, height] = this.#boxOf(drawn, t);
    const ink = inks();
    for (const { color, thick } of [
      { color: ink.text, thick: 4 },
      { color: ink.paper, thick: 1.5 },
    ]) {
      pen.strokeStyle = color;
      pen.lineWidth = thick;
      pen.strokeRect(left - 1, top - 1, width + 1, height + 1);
    }
  }

  /** Names of modules and blocks. @type {(drawn: DrawnMap, area: Surface) => void} */
  #names({ input: { data }, across, down }, area) {
    const { pen, width, line } = area;
    const ink = inks();
    pen.fillStyle = ink.muted;
    pen.textAlign = "right";
    const rows = Math.ceil(line / down); // one name for so many rows
    data.modules.forEach((module, j) => {
      if (j % rows === 0)
        pen.fillText(shortName(module), LEFT() - 8, TOP() + (j + 0.5) * down, LEFT() - 8);
    });
    const every = Math.ceil((data.blocks.length * 2.2 * line) / (width - LEFT()));
    const marks = data.blocks.filter((_, i) => i % every === 0);
    const x = Object.assign(
      (/** @type {number} */ block) =>
        LEFT() + (Math.max(0, data.blocks.indexOf(block)) + 0.5) * across,
      { middle: LEFT() + (data.blocks.length * across) / 2 },
    );
    bottomAxis(area, ink, marks, x, "Block");
  }

  /** The meaning of each color, above the cells. @type {(area: Surface, key: {words: string, color: string}[]) => void} */
  #key({ pen, width, line }, key) {
    const long = (/** @type {string} */ words) => 18 + pen.measureText(words).width + line;
    const room = (/** @type {string[]} */ texts) =>
      texts.reduce((sum, text) => sum + long(text), 0);
    let texts = key.map(({ words }) => words);
    if (LEFT() + room(texts) > width)
      texts = texts.map((words, n) => (n ? words.replace(" bits", "") : words));
    let left = LEFT() + room(texts) > width ? 0 : LEFT();
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    for (const [n, { color }] of key.entries()) {
      const words = texts[n];
      if (left + long(words) - line > width) return;
      pen.fillStyle = color;
      pen.fillRect(left, TOP() / 2 - 5, 10, 10);
      pen.fillStyle = inks().text;
      pen.fillText(words, left + 14, TOP() / 2);
      left += long(words);
    }
  }

  /** The scale of the colors, above the cells. @param {MapInput} input @param {Surface} surface
      @param {number[]} scaled @param {Range} limits @param {(value: number) => string} color */
  #bar({ label, unit, log }, { pen, width, line }, scaled, [low, high], color) {
    const end = (/** @type {number} */ value) => number(log ? 10 ** value : value, 2);
    const from = `${scaled.some((value) => value < low) ? "≤ " : ""}${end(low)}`;
    const to = `${scaled.some((value) => value > high) ? "≥ " : ""}${end(high)}`;
    const room = 8 + pen.measureText(from).width + pen.measureText(to).width;
    const long = Math.max(room, Math.min(220, width / 3));
    const left = width - long - 4;
    for (let i = 0; i < BAR_STEPS; i++) {
      pen.fillStyle = color(low + ((i + 0.5) / BAR_STEPS) * (high - low));
      pen.fillRect(left + (i * long) / BAR_STEPS, 4, long / BAR_STEPS + 0.5, 8);
    }
    pen.fillStyle = inks().muted;
    pen.textBaseline = "top";
    pen.textAlign = "left";
    pen.fillText(from, left, 15);
    pen.textAlign = "right";
    pen.fillText(to, left + long, 15);
    const title = unit ? `${label}, ${unit.trim()}` : label;
    pen.fillText(title, left - 12, Math.max(1, 8 - line / 2), left - 16);
  }
}
