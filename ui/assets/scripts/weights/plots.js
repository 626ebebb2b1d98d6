/* Plots of several views: grids of cells, and lines. Each returns a function that reads the value under the pointer. */
import { DASHES, inks, number, stroke, surface, ticks, widthOf } from "./canvas.js";
import { colorScale, limits, logs } from "./map.js";
/** @import {Range, Surface} from "./canvas.js" */

/** @typedef {{offsetX: number, offsetY: number}} Pointer */
/** @typedef {{panel: number, i: number, j: number, words: string}} PlotPlace Panel, row and column under the pointer;
    all 0 for lines. */
/** @typedef {{at: (pointer: Pointer) => PlotPlace | null, scale: string}} Plot `scale`: the meaning of colors */

/**
 * @typedef {object} Panel
 * @property {string} label
 * @property {number} rows
 * @property {number} columns
 * @property {ArrayLike<number>} data by rows from the top
 * @property {(i: number, j: number) => string} [words] name of a cell
 * @property {number[]} [first] numbers of the first row and column
 * @property {number[]} [spans] how many rows and columns there are, where a cell stands for several
 * @property {Range} [axis] values of both axes, in place of numbers
 * @property {string[]} [marks] names of the columns, where there is room
 */
/**
 * @typedef {object} Grid
 * @property {Panel[]} panels side by side, on the same colors
 * @property {boolean} [even] colors diverge from 0
 * @property {boolean} [log] colors on a log scale; zeros stay empty
 * @property {Range} [ends] first and last value of the scale of colors
 * @property {string} unit
 * @property {[rows: string, columns: string]} names of the axes
 * @property {number} [height]
 * @property {boolean} [upwards] rows from the bottom
 * @property {boolean} [dashed] a line on which nothing has changed
 */
/** @typedef {{left: number, top: number, width: number, height: number}} Box */

const LEFT = 52;
const RIGHT = 12;
const TOP = 36;
const BOTTOM = 36;
const GAP = 44;
const NARROW = 560;
const MAX_ACROSS = 4;
const MAX_DECADES = 6; // of colors on a log scale
const LINES_HEIGHT = 340;

/** Shows the value under the pointer. @type {(canvas: HTMLCanvasElement, output: HTMLElement, plot: () => Plot | null | undefined) => void} */
export function readOut(canvas, output, plot) {
  canvas.onpointermove = (event) => {
    output.textContent = plot()?.at(event)?.words ?? "";
  };
  canvas.onpointerleave = () => {
    output.textContent = "";
  };
}

/** Text that runs upwards. @param {CanvasRenderingContext2D} pen @param {string} text @param {number} x
    @param {number} y @param {number} [width] */
function upright(pen, text, x, y, width) {
  pen.save();
  pen.translate(x, y);
  pen.rotate(-Math.PI / 2);
  pen.fillText(text, 0, 0, width);
  pen.restore();
}

/** Smallest and largest value. @type {(values: number[]) => Range} */
const extent = (values) => [
  values.reduce((least, value) => Math.min(least, value), Infinity),
  values.reduce((most, value) => Math.max(most, value), -Infinity),
];

/** Panels of cells. @param {HTMLCanvasElement} canvas @param {Grid} spec @returns {Plot} */
export function grid(canvas, spec) {
  const { panels, even, log, unit, names, height = 340, upwards } = spec;
  const across = widthOf(canvas) < NARROW ? 1 : Math.min(panels.length, MAX_ACROSS);
  const area = surface(canvas, Math.ceil(panels.length / across) * height);
  const { pen } = area;
  const values = panels.map(({ data }) => (log ? logs(data) : Array.from(data)));
  const [least, most] = extent(values.flat().filter(Number.isFinite));
  /** @type {Range} */
  const own = log ? [Math.max(least, most - MAX_DECADES), most] : limits(values.flat(), even);
  const ends = spec.ends ?? own;
  const color = colorScale(pen, ends, even);
  const tall = height - TOP - BOTTOM;
  const room = area.width - LEFT - RIGHT - (across - 1) * GAP;
  const width = Math.min(room / across, upwards ? 1.5 * tall : Infinity);
  const start = LEFT + (room - across * width) / 2; // narrow panels are centered
  const boxes = panels.map((_, k) => ({
    left: start + (k % across) * (width + GAP),
    top: Math.floor(k / across) * height + TOP,
    width,
    height: tall,
  }));
  panels.forEach((panel, k) => {
    paintCells(pen, panel, boxes[k], values[k], color, upwards);
    paintFrame(area, panel, boxes[k], spec, k % across === 0);
  });
  pen.textAlign = "center";
  upright(pen, names[0], start - LEFT + 12, TOP + tall / 2);
  const [low, high] = log ? ends.map((end) => 10 ** end) : ends;
  return {
    at: (pointer) => cellAt(pointer, boxes, spec),
    scale: `${number(low)} to ${number(high)}${unit}`,
  };
}

/** @param {CanvasRenderingContext2D} pen @param {Panel} panel @param {Box} box @param {number[]} values
    @param {(value: number) => string} color @param {boolean} [upwards] */
function paintCells(pen, { rows, columns }, { left, top, width, height }, values, color, upwards) {
  const dx = width / columns;
  const dy = height / rows;
  values.forEach((value, at) => {
    if (!Number.isFinite(value)) return;
    const i = Math.floor(at / columns);
    const j = at % columns;
    const row = upwards ? rows - 1 - i : i;
    const x = Math.floor(left + j * dx);
    const y = Math.floor(top + row * dy); // whole pixels, without seams
    pen.fillStyle = color(value);
    pen.fillRect(x, y, Math.ceil(left + (j + 1) * dx) - x, Math.ceil(top + (row + 1) * dy) - y);
  });
}

/** A number on the axis of rows (side 0) or columns (side 1). @param {Panel} panel @param {0 | 1} side
    @param {number} part of the axis */
function axisNumber({ axis, first, spans, rows, columns }, side, part) {
  if (axis) return number(axis[0] + part * (axis[1] - axis[0]), 2);
  const span = spans?.[side] ?? [rows, columns][side];
  const last = part === 1 ? 1 : 0;
  return String(Math.floor((first?.[side] ?? 0) + part * span - last));
}

/** Title and axes of a panel. @param {Surface} surface @param {Panel} panel @param {Box} box @param {Grid} spec
    @param {boolean} isFirst of its row */
function paintFrame({ pen, line }, panel, { left, top, width, height }, spec, isFirst) {
  const ink = inks();
  const { columns, marks } = panel;
  if (spec.dashed) {
    Object.assign(pen, { strokeStyle: ink.muted, lineWidth: 1 });
    pen.setLineDash([4, 4]);
    stroke(pen, left, top + height, left + width, top);
    pen.setLineDash([]);
  }
  Object.assign(pen, { fillStyle: ink.text, textAlign: "left", textBaseline: "alphabetic" });
  pen.fillText(panel.label, left, top - 8, width);
  pen.fillStyle = ink.muted;
  const dx = width / columns;
  const hasMarks = marks && dx >= line / 2;
  /** @type {[number, CanvasTextAlign][]} */
  const parts = [
    [0, "left"],
    [0.5, "center"],
    [1, "right"],
  ];
  for (const [part, align] of parts) {
    pen.textAlign = align;
    if (!hasMarks)
      pen.fillText(axisNumber(panel, 1, part), left + part * width, top + height + line);
    if (!isFirst) continue;
    pen.textAlign = "right";
    const level = spec.upwards ? 1 - part : part;
    pen.fillText(axisNumber(panel, 0, part), left - 6, top + level * height + line / 3);
  }
  pen.textAlign = hasMarks ? "right" : "center";
  if (!hasMarks) pen.fillText(spec.names[1], left + width / 2, top + height + 2 * line);
  else
    marks.forEach((mark, j) =>
      upright(pen, mark, left + (j + 0.5) * dx + line / 4, top + height + 3, BOTTOM - 3),
    );
}

/** The cell under the pointer. @param {Pointer} pointer @param {Box[]} boxes of the panels @param {Grid} spec
    @returns {PlotPlace | null} */
function cellAt({ offsetX, offsetY }, boxes, { panels, upwards, unit }) {
  const k = boxes.findIndex(
    ({ left, top, width, height }) =>
      offsetX >= left && offsetX < left + width && offsetY >= top && offsetY < top + height,
  );
  if (k < 0) return null;
  const { left, top, width, height } = boxes[k];
  const { label, rows, columns, data, words } = panels[k];
  const row = Math.floor(((offsetY - top) / height) * rows);
  const i = upwards ? rows - 1 - row : row;
  const j = Math.floor(((offsetX - left) / width) * columns);
  const name = words?.(i, j) ?? `${i}, ${j}`;
  const value = number(data[i * columns + j], 4);
  return { panel: k, i, j, words: `${label}, ${name}: ${value}${unit}` };
}

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {string} color
 * @property {string} dash
 * @property {ArrayLike<number>} x
 * @property {ArrayLike<number>} y
 * @property {ArrayLike<number>} [names] channels of the points
 * @property {number[]} [marks] points with a ring
 * @property {boolean} [thin] a line in the background, which the pointer leaves out
 */
/** @typedef {{series: Line[], xLog?: boolean, yLog?: boolean, signed?: boolean, names: [y: string, x: string], height?: number}} Lines
    `signed`: the y axis is even around 0. */
/** @typedef {{low: number, high: number, log?: boolean, pixels: (value: number) => number}} Axis Scaled limits. */

/** Ends of an axis, in decades where it is logarithmic. @param {Line[]} series @param {"x" | "y"} name
    @param {boolean} [log] @returns {Range} */
function axisEnds(series, name, log) {
  const values = series.flatMap((line) => Array.from(line[name]));
  const [low, high] = extent(values.filter((value) => (log ? value > 0 : Number.isFinite(value))));
  if (!log) return [Math.min(0, 1.05 * low), 1.05 * high || 1];
  const floor = name === "y" ? high / 1000 : 0;
  return [Math.log10(Math.max(low, floor) || low), Math.log10(high) + 0.03];
}

/** @param {Range} ends @param {boolean | undefined} log @param {number} from pixels of the low end @param {number} to
    pixels of the high end @returns {Axis} */
function axisOf([low, high], log, from, to) {
  const pixels = (/** @type {number} */ value) => {
    const part = ((log ? Math.log10(value) : value) - low) / (high - low || 1);
    return from + part * (to - from);
  };
  return { low, high, log, pixels };
}

/** @param {Axis} axis */
function axisTicks({ low, high, log }) {
  const decades = [];
  for (let power = Math.ceil(low); power <= high; power++) decades.push(10 ** power);
  const marks = log ? decades : ticks(low, high, 5);
  if (marks.length > 1) return marks;
  return [low, (low + high) / 2, high].map((value) => (log ? 10 ** value : value));
}

/** Lines on linear or log axes. @param {HTMLCanvasElement} canvas @param {Lines} spec @returns {Plot} */
export function lines(canvas, { series, xLog, yLog, signed, names, height: tall = LINES_HEIGHT }) {
  const area = surface(canvas, tall);
  const { pen, width, height } = area;
  const measured = series.filter(({ thin }) => !thin);
  const x = axisOf(axisEnds(measured, "x", xLog), xLog, LEFT, width - RIGHT);
  const [low, high] = axisEnds(measured, "y", yLog);
  const most = Math.max(Math.abs(low), high);
  const y = axisOf(signed ? [-most, most] : [low, high], yLog, height - BOTTOM, TOP);
  paintAxes(area, x, y, names);
  pen.save();
  pen.beginPath();
  pen.rect(LEFT, TOP - 6, width - LEFT, height - TOP - BOTTOM + 8);
  pen.clip();
  for (const line of series) paintLine(pen, line, x, y);
  pen.restore();
  /** @type {Plot["at"]} */
  const at = ({ offsetX }) => {
    if (offsetX < LEFT) return null;
    const place = x.low + ((offsetX - LEFT) / (width - LEFT - RIGHT)) * (x.high - x.low);
    const words = measured.map((line) => pointWords(line, xLog ? 10 ** place : place));
    return { panel: 0, i: 0, j: 0, words: words.join(" · ") };
  };
  return { at, scale: "" };
}

/** @type {(surface: Surface, x: Axis, y: Axis, names: [y: string, x: string]) => void} */
function paintAxes({ pen, width, height, line }, x, y, names) {
  const ink = inks();
  Object.assign(pen, {
    fillStyle: ink.muted,
    strokeStyle: ink.line,
    lineWidth: 1,
    textAlign: "right",
    textBaseline: "middle",
  });
  for (const tick of axisTicks(y)) {
    const level = y.pixels(tick);
    pen.fillText(number(tick), LEFT - 6, level, LEFT - 8);
    stroke(pen, LEFT, level, width - RIGHT, level);
  }
  pen.textAlign = "center";
  pen.textBaseline = "alphabetic";
  for (const tick of axisTicks(x)) pen.fillText(number(tick), x.pixels(tick), height - line - 4);
  pen.fillText(names[1], (LEFT + width) / 2, height - 4);
  pen.textAlign = "left";
  pen.fillText(names[0], LEFT, 14);
}

/** @type {(pen: CanvasRenderingContext2D, line: Line, x: Axis, y: Axis) => void} */
function paintLine(pen, line, x, y) {
  pen.strokeStyle = inks().stage(line.color);
  pen.lineWidth = line.thin ? 1.25 : 2;
  pen.setLineDash(DASHES[line.dash] ?? []);
  pen.beginPath();
  for (let i = 0; i < line.x.length; i++)
    if (!y.log || line.y[i] > 0) pen.lineTo(x.pixels(line.x[i]), y.pixels(line.y[i]));
  pen.stroke();
  pen.setLineDash([]);
  for (const i of line.marks ?? []) {
    pen.beginPath();
    pen.arc(x.pixels(line.x[i]), y.pixels(line.y[i]), 4, 0, 7);
    pen.stroke();
  }
}

/** Point of a line with the nearest x. @type {(line: Line, wanted: number) => string} */
function pointWords({ label, x, y, names }, wanted) {
  let best = 0;
  for (let i = 1; i < x.length; i++)
    if (Math.abs(x[i] - wanted) < Math.abs(x[best] - wanted)) best = i;
  const place = names ? `channel ${names[best]}` : `at ${number(x[best])}`;
  return `${label} ${place}: ${number(y[best], 4)}`;
}
