/* The weights of one tensor: overlaid histograms of stages, labeled inside the chart, and the difference of
   two of them as a strip. A drag marks a range of magnitudes. */
import {
  DASHES,
  axisScale,
  bottomAxis,
  em,
  inks,
  number,
  share,
  stroke,
  surface,
  ticks,
  tween,
  widthOf,
} from "./canvas.js";
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
 * @property {boolean} log
 * @property {Range | null} brush marked magnitudes
 * @property {number} [from] stage that the front one comes from
 * @property {number} [part] of the way from there, 1 by default
 */
/** @typedef {Stage & {heights: Float64Array, isFront: boolean, isBase: boolean}} Curve `heights`: percent by bin. */
/**
 * @typedef {object} DrawnHistogram
 * @property {Curve[]} curves
 * @property {Range} range of the bins
 * @property {number} bins
 * @property {number} reach right end of the weight axis, which begins at its negative
 * @property {number} top end of the height axis
 * @property {number} cutoff
 * @property {number} width
 * @property {HistogramInput} input
 */
/** @typedef {{label: string, color: string, heights: Float64Array}} Difference of two histograms, in points by bin. */

const RIGHT = 12;
const TOP = 8;
const LEFT = () => em(2.75);
const BOTTOM = () => em(2.25);
const PEAK_WIDTH = 0.06; // share of the axis: a narrow peak at zero
const PEAK_RATIO = 1.6; // to all else: a peak that is cut off
const ROOM = 1.25; // above all else
const MIN_DRAG = 0.01; // of the axis
const SWATCH = 12; // pixels of a curve's color before its name
const LABELED = 0.01; // smallest share of the weights with a label

/** Percent by bin of a tensor on other edges; weights are taken to lie evenly in their own bins.
    @param {Histograms} data @param {number} t @param {number} s @param {Range} range @param {number} bins */
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

/** End of the height axis: it shows what has to be whole, and all but a tall peak at zero.
    @param {Float64Array[]} curves @param {ArrayLike<number>} whole */
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

/** @type {(start: Float64Array, end: Float64Array, part: number) => Float64Array} */
const mixed = (start, end, part) =>
  part < 1 && start.length === end.length
    ? end.map((height, i) => start[i] + (height - start[i]) * part)
    : end;

/** Curves in the order in which they are drawn. @param {HistogramInput} input @param {Range} range @param {number} bins
 */
function curvesOf({ data, t, s, shown, other, from = s, part = 1 }, range, bins) {
  const base = data.main[0];
  const stages = [...shown.filter((stage) => stage !== s), s].filter((each) => data.has(t, each));
  /** @type {Curve[]} */
  const curves = stages.map((stage) => ({
    ...data.stages[stage],
    heights: data.heights(t, stage, bins),
    isFront: stage === s,
    isBase: stage === base,
  }));
  const front = curves.at(-1);
  if (front?.isFront && part < 1 && data.has(t, from)) {
    front.heights = mixed(data.heights(t, from, bins), front.heights, part);
    front.short = `${data.stages[from].short} → ${front.short}`;
    if (part < 0.5) front.color = data.stages[from].color;
  }
  if (other?.data.has(other.t, other.s))
    curves.splice(-1, 0, {
      ...data.stages[s],
      dash: "dash",
      label: `${other.data.stages[other.s].label}, ${other.data.run}`,
      short: other.data.run,
      heights: rebinned(other.data, other.t, other.s, range, bins),
      isFront: false,
      isBase: false,
    });
  return curves;
}

export class HistogramChart {
  /** @type {DrawnHistogram | null} */
  #drawn = null;
  #stop = () => {};
  /** Start of a drag. @type {number | null} */
  #dragged = null;
  /** Weight under the pointer. @type {number | null} */
  #pointed = null;

  /** @param {HTMLCanvasElement} canvas @param {HTMLElement} output
      @param {{brush: (low: number, high: number) => void, clear: () => void}} on @param {number} [height] */
  constructor(canvas, output, on, height = 240) {
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
    const { reach, width } = this.#drawn;
    const part = (offsetX - LEFT()) / (width - LEFT() - RIGHT);
    return (2 * Math.max(0, Math.min(1, part)) - 1) * reach;
  }

  /** @param {number | null} weight */
  #showPointed(weight) {
    this.#pointed = weight;
    this.#paint();
    this.output.textContent = "";
    if (weight === null || !this.#drawn) return;
    const { range, bins, curves } = this.#drawn;
    const bin = Math.floor(((weight - range[0]) / (range[1] - range[0])) * bins);
    const i = Math.max(0, Math.min(bins - 1, bin));
    const words = curves.map(({ short, heights }) => `${short} ${number(heights[i])} %`);
    this.output.textContent = `${number(weight)}: ${words.join(" · ")}`;
  }

  /** @param {HistogramInput} input @param {boolean} moves animate from the previous drawing */
  draw(input, moves) {
    const { data, t, s, shown } = input;
    const range = data.range(t);
    const bins = data.fewer(t);
    const curves = curvesOf(input, range, bins);
    const heights = curves.map((each) => each.heights);
    const before = moves ? this.#drawn?.curves : null;
    this.#drawn = {
      curves,
      range,
      bins,
      reach: data.reach(t, [...new Set([...shown, s])]),
      top: ceiling(heights, curves.find(({ isBase }) => isBase)?.heights ?? []),
      cutoff: data.cutoff(t, s),
      width: widthOf(this.canvas),
      input,
    };
    this.#stop();
    const starts = curves.map((each) => {
      const start = before?.find(({ name, dash, isFront }) =>
        each.isFront ? isFront : name === each.name && dash === each.dash,
      );
      return start?.heights ?? each.heights;
    });
    if (before) this.#stop = tween((part) => this.#paint(part, starts));
    else this.#paint();
  }

  /** Pixels of a weight. @param {DrawnHistogram} drawn @returns {AxisScale} */
  #across({ reach, width }) {
    return axisScale([-reach, reach], LEFT(), width - RIGHT);
  }

  /** @type {(part?: number, starts?: Float64Array[]) => void} */
  #paint(part = 1, starts = []) {
    if (!this.#drawn) return;
    const drawn = this.#drawn;
    const { reach } = drawn;
    const area = surface(this.canvas, this.height);
    const { pen, width, height } = area;
    const floor = height - BOTTOM();
    const x = this.#across(drawn);
    const y = this.#heightAxis(drawn, area, floor);
    this.#paintBrush(drawn, pen, x, floor);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT(), TOP - 4, width - LEFT() - RIGHT, floor - TOP + 5);
    pen.clip();
    for (const isFilled of [true, false])
      // lines lie over what is filled
      drawn.curves.forEach((curve, place) => {
        if ((curve.isBase || curve.isFront) !== isFilled) return;
        const heights = mixed(starts[place] ?? curve.heights, curve.heights, part);
        this.#paintCurve(drawn, pen, curve, heights, x, y);
      });
    this.#paintMarks(drawn, pen, x, floor);
    this.#paintLabels(drawn, area, x, y);
    pen.restore();
    bottomAxis(area, inks(), ticks(-reach, reach, width < 480 ? 4 : 6), x, "Weight");
  }

  /** Draws the height axis and returns its scale. @param {DrawnHistogram} drawn @param {Surface} surface
      @param {number} floor @returns {(height: number) => number} */
  #heightAxis({ input, top }, { pen, width }, floor) {
    const ink = inks();
    const least = Math.max(1e-4, top / 1e5);
    /** @param {number} height */
    const part = (height) =>
      input.log ? Math.log(Math.max(height, least) / least) / Math.log(top / least) : height / top;
    const y = (/** @type {number} */ height) => floor - part(height) * (floor - TOP);
    const decades = Array.from({ length: 6 }, (_, i) => 10 ** (Math.floor(Math.log10(top)) - i));
    const marks = input.log ? decades.filter((height) => height >= least) : ticks(0, top, 4);
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
  #paintBrush({ input, reach }, pen, x, floor) {
    if (!input.brush) return;
    const [from, to] = input.brush;
    pen.fillStyle = inks().accent;
    pen.globalAlpha = 0.16;
    for (const [a, b] of [
      [from, to],
      [-to, -from],
    ]) {
      const left = x(Math.max(-reach, a));
      pen.fillRect(left, TOP, x(Math.min(reach, b)) - left, floor - TOP);
    }
    pen.globalAlpha = 1;
  }

  /** @param {DrawnHistogram} drawn @param {CanvasRenderingContext2D} pen @param {Curve} curve
      @param {Float64Array} heights @param {AxisScale} x @param {(height: number) => number} y */
  #paintCurve({ range, bins }, pen, curve, heights, x, y) {
    const color = inks().stage(curve.color);
    steps(pen, range, bins, heights, x, y);
    Object.assign(pen, { strokeStyle: color, lineWidth: curve.isBase ? 1.25 : 2 });
    const isFilled = curve.isFront || curve.isBase;
    pen.setLineDash(isFilled ? [] : (DASHES[curve.dash] ?? DASHES.dash));
    pen.stroke();
    pen.setLineDash([]);
    if (!isFilled) return;
    pen.lineTo(x(range[1]), y(0));
    pen.lineTo(x(range[0]), y(0));
    Object.assign(pen, { fillStyle: color, globalAlpha: curve.isFront ? 0.32 : 0.2 });
    pen.fill();
    pen.globalAlpha = 1;
  }

  /** The threshold, dotted, and the weight under the pointer.
      @type {(drawn: DrawnHistogram, pen: CanvasRenderingContext2D, x: AxisScale, floor: number) => void} */
  #paintMarks({ cutoff }, pen, x, floor) {
    const line = (/** @type {number} */ weight) => stroke(pen, x(weight), TOP, x(weight), floor);
    const ink = inks();
    pen.lineWidth = 1;
    pen.strokeStyle = ink.text;
    pen.setLineDash([2, 3]);
    if (cutoff > 0) [cutoff, -cutoff].forEach(line);
    pen.setLineDash([]);
    pen.strokeStyle = ink.muted;
    if (this.#pointed !== null) line(this.#pointed);
  }

  /** Names of the curves at their highest visible place, and what became of the middle.
      @type {(drawn: DrawnHistogram, area: Surface, x: AxisScale, y: (height: number) => number) => void} */
  #paintLabels(drawn, { pen, line, width }, x, y) {
    const { curves, cutoff, top, reach, range, bins, input } = drawn;
    const ink = inks();
    /** @type {(text: string, at: number, level: number, color: string, align: CanvasTextAlign) => void} */
    const write = (text, place, level, color, align) => {
      const room = width - RIGHT - pen.measureText(text).width; // of all that is written to the right
      const at = align === "left" ? Math.min(place, room) : place;
      Object.assign(pen, { textAlign: align, textBaseline: "middle", fillStyle: color });
      Object.assign(pen, { strokeStyle: ink.paper, lineWidth: 3, lineJoin: "round" });
      pen.strokeText(text, at, level);
      pen.fillText(text, at, level);
    };
    if (cutoff > 0)
      write(` magnitude threshold ${number(cutoff)}`, x(cutoff), TOP + 5, ink.muted, "left");
    const words = (input.part ?? 1) < 1 ? "" : middleWords(input.data, input.t, input.s);
    const wordsEnd = words ? x.middle + pen.measureText(words).width / 2 : 0;
    const wordsLevel = y(0.4 * top);
    const taken = [TOP + 5];
    /** The nearest free level, upwards or downwards, of a name from `left` on.
        @type {(level: number, step: number, left: number) => number} */
    const free = (level, step, left) => {
      const others = left < wordsEnd ? [...taken, wordsLevel] : taken;
      let place = level;
      while (others.some((each) => Math.abs(each - place) < line)) place += step;
      taken.push(place);
      return place;
    };
    for (const { short, color, heights } of curves) {
      // where the curve falls to 0.7 of its top outside of the middle
      const half = Math.round((bins * (1 + PEAK_WIDTH)) / 2);
      const outer = heights.subarray(half);
      const high = Math.min(top, Math.max(...outer));
      const i =
        half +
        Math.max(
          0,
          outer.findLastIndex((height) => height >= 0.7 * high),
        );
      const weight = range[0] + ((i + 1) * (range[1] - range[0])) / bins;
      const room = width - RIGHT - SWATCH - 4 - pen.measureText(short).width;
      const left = Math.min(x(Math.min(weight, 0.7 * reach)) + 8, room);
      const level = free(y(Math.min(top, heights[i])), -line, left);
      write(short, left + SWATCH + 4, level, ink.text, "left");
      pen.fillStyle = ink.stage(color);
      pen.fillRect(left, level - 2, SWATCH, 3);
    }
    for (const { short, heights } of curves) {
      const peak = Math.max(...heights);
      const at = x(range[0] + ((heights.indexOf(peak) + 0.5) * (range[1] - range[0])) / bins);
      const text = `${short}: up to ${number(peak, 2)} % ↑ `;
      if (peak > top) write(text, at - line, free(TOP + 5, line, at), ink.text, "right");
    }
    if (words) write(words, x.middle, wordsLevel, ink.text, "center");
  }

  /** The difference of two histograms on the axis above. @param {HTMLCanvasElement} canvas
      @param {Difference | null} difference @param {number} height */
  strip(canvas, difference, height) {
    if (!this.#drawn) return;
    const { range, bins } = this.#drawn;
    const { pen, width } = surface(canvas, height);
    const ink = inks();
    const x = this.#across(this.#drawn);
    Object.assign(pen, { fillStyle: ink.text, textAlign: "left", textBaseline: "top" });
    pen.fillText(difference?.label ?? "", LEFT(), 0, width - LEFT() - RIGHT);
    if (!difference) return;
    const top = em(1.25);
    const middle = (top + height) / 2;
    const most = largestOf(difference.heights) || 1;
    const y = (/** @type {number} */ value) => middle - (value / most) * (middle - top);
    for (const [color, keep] of /** @type {[string, (value: number) => number][]} */ ([
      [ink.stage(difference.color), (value) => Math.max(0, value)],
      [ink.muted, (value) => Math.min(0, value)],
    ])) {
      pen.beginPath();
      pen.moveTo(x(range[0]), middle);
      steps(pen, range, bins, difference.heights.map(keep), x, y, false);
      pen.lineTo(x(range[1]), middle);
      pen.fillStyle = color;
      pen.fill();
    }
    Object.assign(pen, { strokeStyle: ink.muted, lineWidth: 1, fillStyle: ink.muted });
    stroke(pen, LEFT(), middle, width - RIGHT, middle);
    Object.assign(pen, { textAlign: "right", textBaseline: "middle" });
    pen.fillText(`+${number(most, 1)}`, LEFT() - 6, top + 4, LEFT() - 6);
    pen.fillText(`−${number(most, 1)}`, LEFT() - 6, height - 6, LEFT() - 6);
  }

  /** The histogram drawn last. */
  get #last() {
    if (!this.#drawn) throw new Error("No histogram has been drawn.");
    return this.#drawn;
  }

  /** Note on the number of weights drawn and the parts cut off. */
  note() {
    const { input, bins, curves, top } = this.#last;
    const { data, t, s } = input;
    const { n, below, above } = data.tail(t, s);
    const tall = curves
      .map(({ short, heights }) => ({ short, most: Math.max(...heights) }))
      .filter(({ most }) => most > top)
      .map(({ short, most }) => `${number(most)} % (${short})`);
    const notes = [`n = ${n.toLocaleString("en")} weights, ${bins} bins.`];
    if (below + above) notes.push(`${(below + above).toLocaleString("en")} lie beyond the bins.`);
    if (tall.length) notes.push(`Peak cut off at ${tall.join(", ")}.`);
    return notes.join(" ");
  }

  /** The curves as a table. @returns {Figures} */
  table() {
    const { curves, range, bins, input } = this.#last;
    const { data, t } = input;
    const edge = (/** @type {number} */ i) => range[0] + (i * (range[1] - range[0])) / bins;
    const rows = Array.from({ length: bins }, (_, i) => [
      edge(i),
      edge(i + 1),
      ...curves.map(({ name, heights }) =>
        Math.round((heights[i] * data.tail(t, Math.max(0, data.stage(name))).n) / 100),
      ),
    ]);
    const labels = curves.map(({ label }) => label);
    return [["From", "To", ...labels], rows.filter((row) => row.slice(2).some(Boolean))];
  }
}

/** The outline of a histogram as a path. @param {CanvasRenderingContext2D} pen @param {Range} range
    @param {number} bins @param {Float64Array} heights @param {AxisScale} x @param {(height: number) => number} y
    @param {boolean} [begins] a path of its own */
function steps(pen, range, bins, heights, x, y, begins = true) {
  const width = (range[1] - range[0]) / bins;
  if (begins) pen.beginPath();
  heights.forEach((height, i) => {
    const left = range[0] + i * width;
    pen.lineTo(x(left), y(height));
    pen.lineTo(x(left + width), y(height));
  });
}

/** Sentence on the change of small weights at a stage. @type {(data: Histograms, t: number, s: number) => string} */
export function middleWords(data, t, s) {
  if (data.main.length < 2 || !data.has(t, s)) return "";
  const zeros = (/** @type {number} */ stage) => data.tail(t, stage).share;
  const removed = zeros(s) - zeros(data.main[0]);
  if (data.stages[s].pruned) return removed > LABELED ? `${share(removed, 0)} removed` : "";
  const pruned = data.main.filter((stage) => stage < s && data.cutoff(t, stage) > 0).at(-1);
  if (pruned === undefined) return "";
  /** @type {Range} */
  const small = [0, data.cutoff(t, pruned)];
  const grown =
    data.within(t, s, small) - zeros(s) - (data.within(t, pruned, small) - zeros(pruned));
  return grown > LABELED ? `${share(grown, 0)} grown back small` : "";
}
