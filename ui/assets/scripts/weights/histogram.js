/* The weights of one tensor: histograms of the stages over each other, their difference to the dense one, or
   added up. A drag marks a range of magnitudes. */
import {
  DASHES,
  bottomAxis,
  em,
  inks,
  number,
  stroke,
  surface,
  ticks,
  tween,
  widthOf,
} from "./canvas.js";
import { ofZeros } from "./words.js";
/** @import {AxisScale, Range, Surface} from "./canvas.js" */
/** @import {Histograms, Stage} from "./histograms.js" */
/** @import {Figures} from "./tables.js" */

/** @typedef {{data: Histograms, t: number, s: number}} Place A tensor at a stage of a run. */
/**
 * @typedef {object} HistogramInput
 * @property {Histograms} data
 * @property {number} t
 * @property {number} s the stage drawn last, in front
 * @property {number[]} shown stages
 * @property {Place | null} other the same in another run
 * @property {string} curve "histogram", "difference" to the first main stage, or "cumulative"
 * @property {boolean} log
 * @property {Range | null} brush marked magnitudes
 */
/** @typedef {Stage & {heights: Float64Array, zeros: number, isFront: boolean, isBase: boolean}} Curve `heights`: percent
    by bin, or by magnitude; `zeros`: a share. */
/**
 * @typedef {object} DrawnHistogram
 * @property {Curve[]} curves
 * @property {Range} range of the bins
 * @property {number} bins
 * @property {number} low left end of the weight axis
 * @property {number} reach right end
 * @property {number} top end of the height axis
 * @property {number} cutoff
 * @property {number} width
 * @property {HistogramInput} input
 */

const RIGHT = 12;
const TOP = 8;
const LEFT = () => em(2.75);
const BOTTOM = () => em(2.25);
const PEAK_WIDTH = 0.06; // of the axis: a narrow peak at zero
const PEAK_RATIO = 1.6; // to all else: a peak that is cut off
const ROOM = 1.25; // above all else
const POINTS = 129; // of a cumulative curve
const MIN_DRAG = 0.01; // of the axis

/**
 * Percent by bin of a tensor on other edges; weights are taken to lie evenly in their own bins.
 * @param {Histograms} data
 * @param {number} t
 * @param {number} s
 * @param {Range} range
 * @param {number} bins
 */
export function rebinned(data, t, s, [from, to], bins) {
  const [left, right] = data.range(t);
  const counts = data.counts(t, s);
  const { n, below } = data.tail(t, s);
  const sums = [below];
  for (let i = 0; i < counts.length; i++) sums.push(sums[i] + counts[i]);
  /** Weights below the edge of a bin. @param {number} edge */
  const upTo = (edge) => {
    const x = from + (edge * (to - from)) / bins;
    const at = Math.min(counts.length, Math.max(0, ((x - left) / (right - left)) * counts.length));
    const i = Math.min(Math.floor(at), counts.length - 1) || 0;
    return sums[i] + (sums[i + 1] - sums[i]) * (at - i);
  };
  return Float64Array.from({ length: bins }, (_, i) => (100 * (upTo(i + 1) - upTo(i))) / (n || 1));
}

/** @param {ArrayLike<number>} values */
const largestOf = (values) =>
  Array.from(values).reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/**
 * End of the height axis: it shows what has to be whole, and all but a tall peak at zero.
 * @param {Float64Array[]} curves
 * @param {ArrayLike<number>} whole
 */
function ceiling(curves, whole) {
  const besidesPeak = curves.map((heights) => {
    const half = Math.max(1, Math.round((heights.length * PEAK_WIDTH) / 2));
    const middle = heights.length >> 1;
    return Math.max(
      largestOf(heights.subarray(0, middle - half)),
      largestOf(heights.subarray(middle + half)),
    );
  });
  const seen = Math.max(largestOf(whole), ...besidesPeak);
  const highest = Math.max(0, ...curves.map(largestOf));
  return seen > 0 && PEAK_RATIO * seen < highest ? ROOM * seen : 1.05 * highest || 1;
}

/**
 * Curves in the order in which they are drawn.
 * @param {HistogramInput} input
 * @param {Range} range
 * @param {number} bins
 * @param {number} reach
 */
function curvesOf({ data, t, s, shown, other, curve }, range, bins, reach) {
  /** @type {(place: Place) => Float64Array} */
  const heightsOf = (at) => {
    if (curve === "cumulative")
      return Float64Array.from(
        { length: POINTS },
        (_, i) => 100 * at.data.within(at.t, at.s, [0, (i * reach) / (POINTS - 1)]),
      );
    if (at.data === data) return data.heights(at.t, at.s, bins);
    return rebinned(at.data, at.t, at.s, range, bins);
  };
  const base = data.main[0];
  const stages = [...shown.filter((stage) => stage !== s), s].filter((each) => data.has(t, each));
  /** @type {Curve[]} */
  const curves = stages.map((stage) => ({
    ...data.stages[stage],
    heights: heightsOf({ data, t, s: stage }),
    zeros: data.tail(t, stage).share,
    isFront: stage === s,
    isBase: stage === base,
  }));
  if (other?.data.has(other.t, other.s))
    curves.splice(-1, 0, {
      ...data.stages[s],
      dash: "dash",
      label: `${other.data.stages[other.s].label}, ${other.data.run}`,
      heights: heightsOf(other),
      zeros: other.data.tail(other.t, other.s).share,
      isFront: false,
      isBase: false,
    });
  if (curve !== "difference" || !data.has(t, base)) return curves;
  const dense = heightsOf({ data, t, s: base });
  return curves
    .filter(({ isBase }) => !isBase)
    .map((each) => ({ ...each, heights: each.heights.map((height, i) => height - dense[i]) }));
}

export class HistogramChart {
  /** @type {DrawnHistogram | null} */
  #drawn = null;
  #stop = () => {};
  /** Where a drag began. @type {number | null} */
  #dragged = null;
  /** Weight under the pointer. @type {number | null} */
  #pointed = null;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} output
   * @param {{brush: (low: number, high: number) => void, clear: () => void}} on
   * @param {number} [height]
   */
  constructor(canvas, output, on, height = 316) {
    this.canvas = canvas;
    this.output = output;
    this.height = height;
    canvas.onpointerdown = (event) => {
      if (event.button) return;
      this.#dragged = this.#weightAt(event);
      canvas.setPointerCapture(event.pointerId);
    };
    canvas.onpointermove = (event) => {
      const weight = this.#weightAt(event);
      if (this.#dragged === null || weight === null || !this.#drawn)
        return this.#showPointed(weight);
      if (Math.abs(weight - this.#dragged) <= MIN_DRAG * this.#drawn.reach) return;
      const [low, high] = [Math.abs(this.#dragged), Math.abs(weight)].sort((a, b) => a - b);
      on.brush(this.#dragged * weight < 0 ? 0 : low, high);
    };
    canvas.onpointerup = (event) => {
      if (this.#dragged !== null && this.#weightAt(event) === this.#dragged) on.clear();
      this.#dragged = null;
    };
    canvas.onpointerleave = () => this.#showPointed(null);
    canvas.onkeydown = (event) => {
      if (event.key === "Escape") on.clear();
    };
  }

  /** @param {PointerEvent} event */
  #weightAt({ offsetX }) {
    if (!this.#drawn) return null;
    const { low, reach, width } = this.#drawn;
    const part = (offsetX - LEFT()) / (width - LEFT() - RIGHT);
    return low + Math.max(0, Math.min(1, part)) * (reach - low);
  }

  /** Index of the heights at a weight. @type {(drawn: DrawnHistogram, weight: number) => number} */
  #indexOf({ input, reach, range, bins }, weight) {
    if (input.curve === "cumulative") return Math.round((Math.abs(weight) / reach) * (POINTS - 1));
    const bin = Math.floor(((weight - range[0]) / (range[1] - range[0])) * bins);
    return Math.max(0, Math.min(bins - 1, bin));
  }

  /** @param {number | null} weight */
  #showPointed(weight) {
    this.#pointed = weight;
    this.#paint();
    this.output.textContent = "";
    if (weight === null || !this.#drawn) return;
    const i = this.#indexOf(this.#drawn, weight);
    const words = this.#drawn.curves.map(
      ({ label, heights }) => `${label} ${number(heights[i])} %`,
    );
    this.output.textContent = `${number(weight)}: ${words.join(" · ")}`;
  }

  /**
   * @param {HistogramInput} input
   * @param {boolean} moves curves glide there from what was drawn
   */
  draw(input, moves) {
    const { data, t, s, shown, curve } = input;
    const range = data.range(t);
    const bins = data.fewer(t);
    const reach = data.reach(t, [...new Set([...shown, s])]);
    const curves = curvesOf(input, range, bins, reach);
    const heights = curves.map((each) => each.heights);
    const whole =
      curve === "difference"
        ? heights.flatMap((each) => Array.from(each, (height) => Math.min(height, 0)))
        : (curves.find(({ isBase }) => isBase)?.heights ?? []);
    const isAdded = curve === "cumulative";
    const before = moves ? this.#drawn?.curves : null;
    this.#drawn = {
      curves,
      range,
      bins,
      low: isAdded ? 0 : -reach,
      reach,
      top: isAdded ? 100 : ceiling(heights, whole),
      cutoff: data.cutoff(t, s),
      width: widthOf(this.canvas),
      input,
    };
    this.#stop();
    const starts = curves.map((each) => {
      const start = before?.find(({ name, dash, isFront }) =>
        each.isFront ? isFront : name === each.name && dash === each.dash,
      );
      return start?.heights.length === each.heights.length ? start.heights : each.heights;
    });
    if (before) this.#stop = tween((part) => this.#paint(part, starts));
    else this.#paint();
  }

  /** @type {(part?: number, starts?: Float64Array[]) => void} */
  #paint(part = 1, starts = []) {
    if (!this.#drawn) return;
    const drawn = this.#drawn;
    const { low, reach, input } = drawn;
    const area = surface(this.canvas, this.height);
    const { pen, width, height } = area;
    const floor = height - BOTTOM();
    const plot = width - LEFT() - RIGHT;
    const x = Object.assign(
      (/** @type {number} */ w) => LEFT() + ((w - low) / (reach - low)) * plot,
      { middle: LEFT() + plot / 2 },
    );
    const y = this.#heightAxis(drawn, area, floor);
    this.#paintBrush(drawn, pen, x, floor);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT(), TOP - 4, plot, floor - TOP + 5);
    pen.clip();
    drawn.curves.forEach((curve, place) => {
      const start = starts[place] ?? curve.heights;
      const heights = curve.heights.map((end, i) => start[i] + (end - start[i]) * part);
      this.#paintCurve(drawn, pen, curve, heights, x, y);
    });
    this.#paintMarks(drawn, pen, x, floor);
    pen.restore();
    const marks = ticks(low, reach, width < 480 ? 4 : 6);
    const title = input.curve === "cumulative" ? "|Weight|" : "Weight";
    bottomAxis(area, inks(), marks, x, title);
  }

  /**
   * Draws the height axis and returns its scale.
   * @param {DrawnHistogram} drawn
   * @param {Surface} surface
   * @param {number} floor
   * @returns {(height: number) => number}
   */
  #heightAxis({ input, top }, { pen, width }, floor) {
    const ink = inks();
    const isSigned = input.curve === "difference";
    const isLog = input.log && input.curve === "histogram";
    const least = Math.max(1e-4, top / 1e5);
    /** @param {number} height */
    const part = (height) => {
      if (isLog) return Math.log(Math.max(height, least) / least) / Math.log(top / least);
      return isSigned ? (1 + height / top) / 2 : height / top;
    };
    const y = (/** @type {number} */ height) => floor - part(height) * (floor - TOP);
    const decades = Array.from({ length: 6 }, (_, i) => 10 ** (Math.floor(Math.log10(top)) - i));
    const marks = isLog
      ? decades.filter((height) => height >= least)
      : ticks(isSigned ? -top : 0, top, 4);
    Object.assign(pen, {
      fillStyle: ink.muted,
      textAlign: "right",
      textBaseline: "middle",
      strokeStyle: ink.line,
      lineWidth: 1,
    });
    for (const height of marks) {
      pen.fillText(`${number(height)}\u00a0%`, LEFT() - 6, y(height), LEFT() - 6);
      stroke(pen, LEFT(), y(height), width - RIGHT, y(height));
    }
    return y;
  }

  /** @type {(drawn: DrawnHistogram, pen: CanvasRenderingContext2D, x: AxisScale, floor: number) => void} */
  #paintBrush({ input, low, reach }, pen, x, floor) {
    if (!input.brush) return;
    const [from, to] = input.brush;
    const ranges =
      input.curve === "cumulative"
        ? [[from, to]]
        : [
            [from, to],
            [-to, -from],
          ];
    pen.fillStyle = inks().accent;
    pen.globalAlpha = 0.16;
    for (const [a, b] of ranges) {
      const left = x(Math.max(low, a));
      pen.fillRect(left, TOP, x(Math.min(reach, b)) - left, floor - TOP);
    }
    pen.globalAlpha = 1;
  }

  /**
   * @param {DrawnHistogram} drawn
   * @param {CanvasRenderingContext2D} pen
   * @param {Curve} curve
   * @param {Float64Array} heights
   * @param {AxisScale} x
   * @param {(height: number) => number} y
   */
  #paintCurve({ input, range, bins, reach }, pen, curve, heights, x, y) {
    const isAdded = input.curve === "cumulative";
    const color = inks().stage(curve.color);
    const width = (range[1] - range[0]) / bins;
    pen.beginPath();
    heights.forEach((height, i) => {
      if (isAdded) return pen.lineTo(x((i * reach) / (POINTS - 1)), y(height));
      const left = range[0] + i * width;
      pen.lineTo(x(left), y(height));
      pen.lineTo(x(left + width), y(height));
    });
    Object.assign(pen, { strokeStyle: color, lineWidth: curve.isFront ? 2.25 : 1.25 });
    pen.setLineDash(curve.isFront ? [] : (DASHES[curve.dash] ?? []));
    pen.stroke();
    pen.setLineDash([]);
    if (isAdded || !(curve.isFront || curve.isBase)) return;
    pen.lineTo(x(range[1]), y(0));
    pen.lineTo(x(range[0]), y(0));
    Object.assign(pen, { fillStyle: color, globalAlpha: curve.isFront ? 0.32 : 0.2 });
    pen.fill();
    pen.globalAlpha = 1;
  }

  /**
   * The threshold, dotted, and the weight under the pointer.
   * @type {(drawn: DrawnHistogram, pen: CanvasRenderingContext2D, x: AxisScale, floor: number) => void}
   */
  #paintMarks({ input, cutoff }, pen, x, floor) {
    const line = (/** @type {number} */ weight) => stroke(pen, x(weight), TOP, x(weight), floor);
    const ink = inks();
    pen.lineWidth = 1;
    pen.strokeStyle = ink.text;
    pen.setLineDash([2, 3]);
    if (cutoff > 0) line(cutoff);
    if (cutoff > 0 && input.curve !== "cumulative") line(-cutoff);
    pen.setLineDash([]);
    pen.strokeStyle = ink.muted;
    if (this.#pointed !== null) line(this.#pointed);
  }

  /** What was drawn last. */
  get #last() {
    if (!this.#drawn) throw new Error("No histogram has been drawn.");
    return this.#drawn;
  }

  /** The meaning of the lines, and what is cut off. */
  note() {
    const { curves, top, cutoff, input } = this.#last;
    const tall = curves
      .map(({ label, heights }) => ({ label, most: Math.max(...heights) }))
      .filter(({ most }) => input.curve !== "cumulative" && most > top)
      .map(({ label, most }) => `${number(most)} % (${label})`);
    const notes = [];
    if (cutoff > 0)
      notes.push(`Dotted: magnitude threshold at the same sparsity, ${number(cutoff)}.`);
    if (tall.length) notes.push(`Cut off at zero, where it reaches ${tall.join(", ")}.`);
    return notes.join(" ");
  }

  /** How much is drawn and what lies beyond the axes. */
  details() {
    const { input, reach, bins } = this.#last;
    const { data, t, s } = input;
    const { n, below, above } = data.tail(t, s);
    const notes = [
      `n = ${n.toLocaleString("en")} weights, ${bins} bins, middle 99.8 % shown (±${number(reach)}).`,
    ];
    if (below + above) notes.push(`${(below + above).toLocaleString("en")} lie beyond the bins.`);
    if (data.merged > 1)
      notes.push(`Bins are merged by ${data.merged}, so that all histograms of this run fit.`);
    return notes.join(" ");
  }

  /** The curves as a table. @returns {Figures} */
  table() {
    const { curves, range, bins, reach, input } = this.#last;
    const { data, t, curve } = input;
    const labels = curves.map(({ label }) => label);
    if (curve === "cumulative")
      return [
        ["|w| below", ...labels.map((label) => `${label}, %`)],
        Array.from({ length: POINTS }, (_, i) => [
          (i * reach) / (POINTS - 1),
          ...curves.map(({ heights }) => heights[i]),
        ]),
      ];
    /** @type {(curve: Curve, i: number) => number} */
    const cell = ({ name, heights }, i) => {
      if (curve === "difference") return heights[i];
      return Math.round((heights[i] * data.tail(t, Math.max(0, data.stage(name))).n) / 100);
    };
    const edge = (/** @type {number} */ i) => range[0] + (i * (range[1] - range[0])) / bins;
    const rows = Array.from({ length: bins }, (_, i) => [
      edge(i),
      edge(i + 1),
      ...curves.map((each) => cell(each, i)),
    ]);
    return [["From", "To", ...labels], rows.filter((row) => row.slice(2).some(Boolean))];
  }

  /** Entries of the legend: the label with the exact zeros, which are in no bin. */
  legend() {
    return this.#last.curves.map(({ label, zeros, color, dash }) => ({
      words: `${label} · ${ofZeros(zeros)} exact zeros`,
      color,
      dash,
    }));
  }
}
