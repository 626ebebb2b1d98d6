/* The weights of one tensor: histograms of the stages over each other, their difference to the dense one, or
   added up. A drag marks the magnitudes that are looked for. */
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

const RIGHT = 12,
  TOP = 8,
  LEFT = () => em(2.75),
  BOTTOM = () => em(2.25);
const PEAK_WIDTH = 0.06,
  PEAK_RATIO = 1.6,
  ROOM = 1.25; // a tall narrow peak at zero is cut off
const POINTS = 129;

/** The heights of another tensor on these edges; weights are taken to lie evenly in their own bins. */
export function rebinned(data, t, s, [from, to], bins) {
  const [left, right] = data.range(t),
    counts = data.counts(t, s),
    { n, below } = data.tail(t, s),
    sums = [below];
  for (let i = 0; i < counts.length; i++) sums.push(sums[i] + counts[i]);
  const upto = (x) => {
    const at = Math.max(0, Math.min(counts.length, ((x - left) / (right - left)) * counts.length)),
      i = Math.min(at | 0, counts.length - 1);
    return sums[i] + (sums[i + 1] - sums[i]) * (at - i);
  };
  return Float64Array.from(
    { length: bins },
    (_, i) =>
      (100 *
        (upto(from + ((i + 1) * (to - from)) / bins) - upto(from + (i * (to - from)) / bins))) /
      (n || 1),
  );
}

/** Where the height axis ends: it shows the dense shape whole, and all but a tall peak at zero. */
function ceiling(curves, whole) {
  const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const besides = curves.map((c) => {
    const half = Math.max(1, Math.round((c.length * PEAK_WIDTH) / 2)),
      middle = c.length >> 1;
    return Math.max(largest(c.subarray(0, middle - half)), largest(c.subarray(middle + half)));
  });
  const seen = Math.max(whole ? largest(whole) : 0, ...besides),
    highest = Math.max(...curves.map(largest));
  return seen > 0 && PEAK_RATIO * seen < highest ? ROOM * seen : 1.05 * highest || 1;
}

/** Every curve that is drawn: label, colour, dash and heights, the stage that is looked at last. */
export function curves({ data, t, s, shown, other, curve }) {
  const range = data.range(t),
    bins = data.fewer(t),
    reach = data.reach(t, [...new Set([...shown, s])]),
    base = data.main[0];
  const magnitudes = Float64Array.from({ length: POINTS }, (_, i) => (i * reach) / (POINTS - 1));
  const of = (from, tensor, stage) => {
    if (curve === "cumulative")
      return magnitudes.map((w) => 100 * from.within(tensor, stage, [0, w]));
    return from === data
      ? from.heights(tensor, stage, bins)
      : rebinned(from, tensor, stage, range, bins);
  };
  const stages = [...shown.filter((each) => each !== s), s].filter((each) => data.has(t, each));
  let found = stages.map((each) => ({
    ...data.stages[each],
    own: each === s,
    heights: of(data, t, each),
    zeros: data.tail(t, each).share,
    base: each === base,
  }));
  if (other && other.data.has(other.t, other.s)) {
    const { label } = other.data.stages[other.s];
    found.splice(-1, 0, {
      ...data.stages[s],
      dash: "dash",
      label: `${label}, ${other.data.run}`,
      own: false,
      heights: of(other.data, other.t, other.s),
      zeros: other.data.tail(other.t, other.s).share,
    });
  }
  if (curve === "difference" && data.has(t, base)) {
    const dense = of(data, t, base);
    found = found
      .filter((each) => !each.base)
      .map((each) => ({ ...each, heights: each.heights.map((h, i) => h - dense[i]) }));
  }
  return { found, range, bins, reach };
}

export class HistogramChart {
  #shown = null;
  #stop = () => {};
  #before = new Map();
  #drag = null;
  #place = null;

  /** @param {{brush: (low: number, high: number) => void, clear: () => void}} on */
  constructor(canvas, output, on, height = 316) {
    Object.assign(this, { canvas, output, on, height });
    canvas.onpointerdown = (event) => {
      if (event.button) return;
      this.#drag = this.#weight(event);
      canvas.setPointerCapture(event.pointerId);
    };
    canvas.onpointermove = (event) => {
      const at = this.#weight(event);
      if (this.#drag === null || at === null) return this.#crosshair(at);
      const [a, b] = [this.#drag, at].map(Math.abs),
        across = this.#drag * at < 0;
      if (Math.abs(at - this.#drag) > 0.01 * this.#shown.reach)
        on.brush(across ? 0 : Math.min(a, b), Math.max(a, b));
    };
    canvas.onpointerup = (event) => {
      if (this.#drag !== null && this.#weight(event) === this.#drag) on.clear();
      this.#drag = null;
    };
    canvas.onpointerleave = () => this.#crosshair(null);
    canvas.onkeydown = (event) => {
      if (event.key === "Escape") on.clear();
    };
  }

  #weight({ offsetX }) {
    if (!this.#shown) return null;
    const { low, reach, width } = this.#shown,
      part = (offsetX - LEFT()) / (width - LEFT() - RIGHT);
    return low + Math.max(0, Math.min(1, part)) * (reach - low);
  }

  #crosshair(at) {
    this.#place = at;
    this.#paint(1);
    if (at === null || !this.#shown) {
      this.output.textContent = "";
      return;
    }
    const { found, index } = this.#shown,
      i = index(at);
    this.output.textContent = `${number(at)}: ${found.map((each) => `${each.label} ${number(each.heights[i])} %`).join(" · ")}`;
  }

  /** Draws what `curves` takes, `log`, `brush` [low, high] or null; moves there from what was drawn if `moves`. */
  draw(asked, moves) {
    const { found, range, bins, reach } = curves(asked),
      { data, t, s, curve } = asked,
      added = curve === "cumulative";
    const whole =
      curve === "difference"
        ? found.flatMap((each) => [...each.heights.map((h) => Math.min(h, 0))])
        : found.find((each) => each.base)?.heights;
    const top = added
        ? 100
        : found.length
          ? ceiling(
              found.map((each) => each.heights),
              whole,
            )
          : 1,
      low = added ? 0 : -reach;
    const bin = (w) => Math.floor(((w - range[0]) / (range[1] - range[0])) * bins);
    const index = (w) =>
      added
        ? Math.round((Math.abs(w) / reach) * (POINTS - 1))
        : Math.max(0, Math.min(bins - 1, bin(w)));
    this.#shown = {
      ...asked,
      found,
      range,
      bins,
      reach,
      top,
      low,
      index,
      added,
      cutoff: data.cutoff(t, s),
      width: widthOf(this.canvas),
    };
    this.#stop();
    const before = this.#before,
      fits = (heights, each) => (moves && heights?.length === each.heights.length ? heights : null);
    this.#before = new Map(found.map((each) => [each.name + each.dash, each.heights]));
    const from = found.map((each) =>
      fits(each.own ? before.last : before.get(each.name + each.dash), each),
    );
    this.#before.last = found.at(-1)?.heights;
    this.#stop = from.some(Boolean)
      ? tween((part) => this.#paint(part, from))
      : (this.#paint(1), () => {});
    return found;
  }

  #paint(part, from = []) {
    if (!this.#shown) return;
    const { found, range, bins, reach, top, low, added, curve, log, brush, cutoff } = this.#shown,
      ink = inks();
    const area = surface(this.canvas, this.height),
      { pen, width, height, line } = area,
      floor = height - BOTTOM(),
      signed = curve === "difference";
    const x = Object.assign(
      (w) => LEFT() + ((w - low) / (reach - low)) * (width - LEFT() - RIGHT),
      { middle: (LEFT() + width - RIGHT) / 2 },
    );
    const least = Math.max(1e-4, top / 1e5),
      logs = log && !signed && !added;
    const part_of = (h) =>
      logs
        ? Math.log(Math.max(h, least) / least) / Math.log(top / least)
        : signed
          ? (1 + h / top) / 2
          : h / top;
    const y = (h) => floor - part_of(h) * (floor - TOP);
    Object.assign(pen, {
      fillStyle: ink.muted,
      textAlign: "right",
      textBaseline: "middle",
      strokeStyle: ink.line,
      lineWidth: 1,
    });
    const marks = logs
      ? Array.from({ length: 6 }, (_, i) => 10 ** (Math.floor(Math.log10(top)) - i)).filter(
          (h) => h >= least,
        )
      : ticks(signed ? -top : 0, top, 4);
    for (const h of marks) {
      pen.fillText(`${number(h)}\u00a0%`, LEFT() - 6, y(h), LEFT() - 6);
      stroke(pen, LEFT(), y(h), width - RIGHT, y(h));
    }
    if (brush)
      for (const [a, b] of added ? [brush] : [brush, [-brush[1], -brush[0]]]) {
        pen.fillStyle = ink.accent;
        pen.globalAlpha = 0.16;
        pen.fillRect(
          x(Math.max(low, a)),
          TOP,
          x(Math.min(reach, b)) - x(Math.max(low, a)),
          floor - TOP,
        );
        pen.globalAlpha = 1;
      }
    pen.save();
    pen.beginPath();
    pen.rect(LEFT(), TOP - 4, width - LEFT() - RIGHT, floor - TOP + 5);
    pen.clip();
    found.forEach((each, place) => {
      const start = from[place],
        colour = ink.stage(each.colour);
      const value = (i) =>
        start ? start[i] + (each.heights[i] - start[i]) * part : each.heights[i];
      pen.beginPath();
      for (let i = 0; i < each.heights.length; i++) {
        if (added) {
          pen.lineTo(x((i * reach) / (POINTS - 1)), y(value(i)));
          continue;
        }
        const left = range[0] + (i * (range[1] - range[0])) / bins,
          h = y(value(i));
        pen.lineTo(x(left), h);
        pen.lineTo(x(left + (range[1] - range[0]) / bins), h);
      }
      Object.assign(pen, { strokeStyle: colour, lineWidth: each.own ? 2.25 : 1.25 });
      pen.setLineDash(each.own ? [] : (DASHES[each.dash] ?? []));
      pen.stroke();
      pen.setLineDash([]);
      if ((each.own || each.base) && !added) {
        pen.lineTo(x(range[1]), y(signed ? 0 : logs ? least : 0));
        pen.lineTo(x(range[0]), y(signed ? 0 : logs ? least : 0));
        Object.assign(pen, { fillStyle: colour, globalAlpha: each.own ? 0.32 : 0.2 });
        pen.fill();
        pen.globalAlpha = 1;
      }
    });
    pen.setLineDash([2, 3]);
    Object.assign(pen, { strokeStyle: ink.text, lineWidth: 1 });
    const lines =
      Number.isFinite(cutoff) && cutoff > 0 ? (added ? [cutoff] : [-cutoff, cutoff]) : [];
    for (const w of lines) stroke(pen, x(w), TOP, x(w), floor);
    pen.setLineDash([]);
    pen.strokeStyle = ink.muted;
    if (this.#place !== null) stroke(pen, x(this.#place), TOP, x(this.#place), floor);
    pen.restore();
    bottomAxis(area, ink, ticks(low, reach, width < 480 ? 4 : 6), x, added ? "|Weight|" : "Weight");
  }

  /** What the lines mean and what is cut off, in words. */
  note() {
    const { found, top, cutoff, curve } = this.#shown;
    const tall = found
      .map((each) => [each.label, Math.max(...each.heights)])
      .filter(([, most]) => curve !== "cumulative" && most > top);
    return [
      cutoff > 0 ? `Dotted: magnitude threshold at the same sparsity, ${number(cutoff)}.` : "",
      tall.length
        ? `Cut off at zero, where it reaches ${tall.map(([label, most]) => `${number(most)} % (${label})`).join(", ")}.`
        : "",
    ]
      .filter(Boolean)
      .join(" ");
  }

  /** How much is drawn and what lies beyond the axes, in words. */
  details() {
    const { data, t, s, reach, bins } = this.#shown,
      tail = data.tail(t, s);
    return [
      `n = ${tail.n.toLocaleString("en")} weights, ${bins} bins, middle 99.8 % shown (±${number(reach)}).`,
      tail.below + tail.above
        ? `${(tail.below + tail.above).toLocaleString("en")} lie beyond the bins.`
        : "",
      data.merged > 1
        ? `Bins are merged by ${data.merged}, so that all histograms of this run fit.`
        : "",
    ]
      .filter(Boolean)
      .join(" ");
  }

  /** The curves as a table: heads, and rows of numbers. */
  table() {
    const { found, range, bins, added, reach, data, t, curve } = this.#shown,
      heads = found.map((each) => each.label);
    if (added)
      return [
        ["|w| below", ...heads.map((label) => `${label}, %`)],
        Array.from({ length: POINTS }, (_, i) => [
          (i * reach) / (POINTS - 1),
          ...found.map((each) => each.heights[i]),
        ]),
      ];
    const edge = (i) => range[0] + (i * (range[1] - range[0])) / bins,
      n = (each) => data.tail(t, Math.max(0, data.stage(each.name))).n;
    const cell = (each, i) =>
      curve === "difference" ? each.heights[i] : Math.round((each.heights[i] * n(each)) / 100);
    const rows = Array.from({ length: bins }, (_, i) => [
      edge(i),
      edge(i + 1),
      ...found.map((each) => cell(each, i)),
    ]);
    return [["From", "To", ...heads], rows.filter((row) => row.slice(2).some(Boolean))];
  }

  /** Entries of the legend: the label with the exact zeros, which are in no bin. */
  legend() {
    const words = ({ label, zeros }) => `${label} · ${ofZeros(zeros)} exact zeros`;
    return this.#shown.found.map((each) => ({ ...each, words: words(each) }));
  }
}
