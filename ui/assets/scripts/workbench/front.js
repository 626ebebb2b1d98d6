/* Size and quality: predicted best allocations, uniform formats, runs, llama.cpp files, saved states and this state. */
import {
  axisScale,
  bottomAxis,
  em,
  inks,
  number,
  share,
  stroke,
  surface,
  ticks,
  times,
} from "../weights/canvas.js";
import { button, tell } from "./elements.js";
import { fits } from "./formats.js";
import { megabytes } from "./measured.js";

const { find } = window.slimscope;

/** @typedef {import("./view.js").View} View */
/** @typedef {import("./predictions.js").Totals} Totals */
/** @typedef {import("./measured.js").Known} Known */
/** @typedef {{nbytes: number, ratio: number}} Place Bytes, and perplexity over dense. */
/** @typedef {Place & {words: string, run?: string, kept?: number, own?: boolean, color?: string, short?: string, quantized?: boolean,
      predicted?: number | null, interval?: [low: number, high: number], side?: CanvasTextAlign, mix?: import("./predictions.js").Mix}} Point
    A run, with the prediction of its state; a kept state; this state; with a `color` a uniform format; with an `interval`
    a file of llama.cpp; a `mix` of a front. */
/** @typedef {{lines: {color: string, points: Point[]}[], uniform: Point[], files: Point[], dense: Point, now: Point,
      kept: Point[], runs: Point[], measured: boolean, height: number}} Shown */

const RIGHT = 14;
const TOP = 10;
const REACH = 14;
const LEFT = () => em(2.75);
const BOTTOM = () => em(2.25);
const MOST_QUEUED = 8; // runs with a button
const TOP_RATIO = 4; // worse states are drawn at the edge
const LOW_RATIO = 0.88; // room for names below the line at 1
const GREEN = "#009E73"; // of llama.cpp

class FrontChart {
  /** @typedef {Point & {x: number, y: number}} Drawn */
  /** @type {Drawn[]} */
  #points = [];
  /** @type {Drawn[]} */
  #mixes = [];
  /** @type {[left: number, right: number, y: number][]} */
  #names = []; // of uniform formats

  /** @param {HTMLCanvasElement} canvas
      @param {{hover: (words: string) => void, pick: (place: number) => void, mix: (mix: import("./predictions.js").Mix) => void}} on
      `pick`: a kept state was clicked, `mix`: a line; a click on a run opens its page */
  constructor(canvas, on) {
    this.canvas = canvas;
    canvas.onpointermove = (event) => {
      const near = this.#near(event);
      on.hover(near?.words ?? "");
      const leads = near?.kept !== undefined || near?.run || near?.mix;
      canvas.style.cursor = leads ? "pointer" : "default";
    };
    canvas.onpointerleave = () => on.hover("");
    canvas.onclick = (event) => {
      const near = this.#near(event);
      if (near?.kept !== undefined) on.pick(near.kept);
      else if (near?.run) location.href = `run?id=${near.run}`;
      else if (near?.mix) on.mix(near.mix);
    };
  }

  /** @param {PointerEvent | MouseEvent} event */
  #near({ offsetX, offsetY }) {
    for (const points of [this.#points, this.#mixes]) {
      const near = points
        .map((point) => ({ ...point, far: Math.hypot(point.x - offsetX, point.y - offsetY) }))
        .sort((a, b) => a.far - b.far)
        .at(0);
      if (near && near.far < REACH) return near;
    }
    return null;
  }

  /** @param {Shown} shown */
  draw(shown) {
    const area = surface(this.canvas, shown.height);
    const ink = inks();
    const axes = this.#axes(shown, area);
    this.#frame(area, ink, axes);
    const { x, y, top, low } = axes;
    const { pen } = area;
    for (const { color: hue, points } of shown.lines) {
      Object.assign(pen, { strokeStyle: ink.stage(hue), lineWidth: 1.75 });
      pen.beginPath();
      for (const each of points) if (each.ratio <= top) pen.lineTo(x(each.nbytes), y(each.ratio));
      pen.stroke();
    }
    const placed = (/** @type {Point[]} */ points) =>
      points
        .filter(({ ratio }) => Number.isFinite(ratio))
        .map((each) => ({ ...each, x: x(each.nbytes), y: y(each.ratio) }));
    this.#mixes = placed(shown.lines.flatMap(({ points }) => points));
    this.#points = placed([
      ...[...shown.uniform, ...shown.files].filter(
        (each) => each.ratio <= top && each.nbytes >= low,
      ),
      ...shown.runs,
      shown.dense,
      ...shown.kept.map((each, kept) => ({ ...each, kept })),
      { ...shown.now, own: true },
    ]);
    this.#names = [];
    for (const point of this.#points) {
      if (point.predicted) this.#became(area, ink, point, y(point.predicted));
      if (point.interval) this.#file(area, ink, point, point.interval.map(y));
      else if (point.color) this.#landmark(area, ink, point);
      else this.#mark(area, ink, point, shown.measured, top);
    }
  }

  /** Prediction of a run's state, with a line to its result.
      @param {ReturnType<typeof surface>} area @param {ReturnType<typeof inks>} ink @param {Drawn} point @param {number} from */
  #became({ pen }, ink, { x, y }, from) {
    Object.assign(pen, { strokeStyle: ink.muted, fillStyle: ink.paper, lineWidth: 1.25 });
    stroke(pen, x, from, x, y);
    pen.beginPath();
    pen.arc(x, from, 4, 0, 7);
    pen.fill();
    pen.stroke();
  }

  /** A diamond with its interval.
      @param {ReturnType<typeof surface>} area @param {ReturnType<typeof inks>} ink @param {Drawn} point @param {number[]} ends */
  #file({ pen }, ink, { x, y, short = "", side = "center" }, [low, high]) {
    Object.assign(pen, { strokeStyle: GREEN, fillStyle: GREEN, lineWidth: 1.25 });
    stroke(pen, x, low, x, high);
    pen.beginPath();
    for (const [right, down] of [
      [0, -6],
      [5, 0],
      [0, 6],
      [-5, 0],
    ])
      pen.lineTo(x + right, y + down);
    pen.fill();
    Object.assign(pen, { fillStyle: ink.muted, textAlign: side });
    pen.fillText(short, x, Math.max(y, low) + 14);
  }

  /** Axes of bytes and perplexity. @param {Shown} shown @param {ReturnType<typeof surface>} area */
  #axes({ lines, dense, now, kept, runs, files }, { width, height }) {
    const floor = height - BOTTOM();
    const states = [dense, now, ...kept, ...runs, ...files].filter(({ ratio }) =>
      Number.isFinite(ratio),
    );
    /** @type {Place[]} */
    const places = [...states, ...lines.flatMap((each) => each.points)];
    const top = Math.min(TOP_RATIO, 1.1 * Math.max(1.5, ...places.map(({ ratio }) => ratio)));
    const most = 1.03 * Math.max(...states.map(({ nbytes }) => nbytes));
    const inside = places.filter(({ ratio }) => ratio < top).map(({ nbytes }) => nbytes);
    const least = Math.min(...inside);
    const low = Math.max(0, least - 0.05 * (most - least));
    const x = axisScale([low, most], LEFT(), width - RIGHT);
    const y = (/** @type {number} */ ratio) => {
      const part =
        Math.log(Math.max(LOW_RATIO, Math.min(top, ratio)) / LOW_RATIO) / Math.log(top / LOW_RATIO);
      return floor - part * (floor - TOP);
    };
    return { x, y, top, low, most };
  }

  /** @param {ReturnType<typeof surface>} area @param {ReturnType<typeof inks>} ink
      @param {{x: (nbytes: number) => number, y: (ratio: number) => number, top: number, low: number, most: number}} axes */
  #frame(area, ink, { x, y, top, low, most }) {
    const { pen, width, line } = area;
    Object.assign(pen, {
      fillStyle: ink.muted,
      strokeStyle: ink.line,
      lineWidth: 1,
      textAlign: "right",
      textBaseline: "middle",
    });
    let above = Infinity; // ticks keep their distance at any font size
    for (const tick of [1, 1.1, 1.25, 1.5, 2, 3, 4].filter((each) => each <= top)) {
      if (above - y(tick) < 0.75 * line) continue;
      above = y(tick);
      pen.fillText(`${times(tick)}`, LEFT() - 5, y(tick), LEFT() - 6);
      stroke(pen, LEFT(), y(tick), width - RIGHT, y(tick));
    }
    const marks = ticks(low / 1e6, (most - 0.04 * (most - low)) / 1e6, 5);
    const megabytes = axisScale([low / 1e6, most / 1e6], LEFT(), width - RIGHT);
    bottomAxis(area, ink, marks, megabytes, "Size, MB");
  }

  /** A dot with its name, unless the name would overlap another one.
      @param {ReturnType<typeof surface>} area @param {ReturnType<typeof inks>} ink @param {Drawn} point */
  #landmark({ pen, width, line }, ink, { x, y, color: hue = "", short = "" }) {
    pen.beginPath();
    Object.assign(pen, { fillStyle: hue, textAlign: "left" });
    pen.arc(x, y, 3.5, 0, 7);
    pen.fill();
    const words = short.replace(" bits", "");
    const right = x + 10 + pen.measureText(words).width;
    const covers = (/** @type {number[]} */ [from, to, at]) =>
      from < right && x < to && Math.abs(at - y) < line;
    if (width < 300 || this.#names.some(covers)) return;
    this.#names.push([x, right, y]);
    Object.assign(pen, { fillStyle: ink.muted }).fillText(words, x + 6, Math.max(y - 7, line / 2));
  }

  /** @param {ReturnType<typeof surface>} area @param {ReturnType<typeof inks>} ink @param {Drawn} point
      @param {boolean} measured @param {number} top */
  #mark({ pen }, ink, { x, y, kept, own, run, ratio }, measured, top) {
    pen.beginPath();
    if (run) pen.rect(x - 5, y - 5, 10, 10);
    else pen.arc(x, y, own ? 7 : 6, 0, 7);
    Object.assign(pen, {
      fillStyle: own && measured ? ink.accent : ink.paper,
      strokeStyle: own ? ink.accent : ink.text,
      lineWidth: own ? 3 : 1.5,
    });
    pen.fill();
    pen.stroke();
    Object.assign(pen, { fillStyle: ink.text, textAlign: "center" });
    if (kept !== undefined) pen.fillText(String(kept + 1), x, y - 14);
    if (own && ratio > top) pen.fillText(`↑ ${times(ratio)}`, x, y + 18);
  }
}

/** The state of a run, and the perplexities known of it: "predicted 1.31, live 1.28, final 1.22 × dense".
    @param {import("./view.js").StateRun} run */
function became({ predicted, live, final, at }) {
  const known = Object.entries({ predicted, live, final })
    .filter(([, ratio]) => ratio)
    .map(([how, ratio]) => `${how} ${number(ratio, 3)}`);
  return `${known.join(", ")} × dense${final ? "" : `, ${at}`}`;
}

/** @param {number} nbytes @param {number} ratio @param {string} how */
const said = (nbytes, ratio, how) => `${megabytes(nbytes)}, ${times(ratio)} dense, ${how}`;

export class FrontPanel {
  /** @param {HTMLElement} card @param {HTMLElement} box of buttons
      @param {{open: (address: string) => void, take: (formats: import("./formats.js").Format[]) => void, drop: () => void}} on
      `take`: a mix was clicked, `drop`: a kept state was dropped */
  constructor(card, box, on) {
    this.card = card;
    this.box = box;
    this.on = on;
    /** @type {View | null} */
    this.view = null;
    /** @type {Point[]} */
    this.uniform = [];
    /** @type {Shown["lines"]} */
    this.lines = [];
    const place = find(card, "output");
    this.chart = new FrontChart(find(card, "canvas", HTMLCanvasElement), {
      hover: (words) => {
        place.textContent = words;
      },
      pick: (kept) => on.open(this.view?.kept[kept].address ?? ""),
      mix: (point) => {
        if (!this.view) return;
        const { predictions, now, pinned } = this.view;
        on.take(predictions.mix(point, now.formats, pinned));
      },
    });
  }

  /** @param {View} view @param {Totals} totals of what is shown @param {Known} known @param {number} height */
  draw(view, totals, known, height) {
    const { predictions, model } = view;
    const measured = known.ratio !== undefined && known.exactly !== false;
    const predicted = totals.unknown ? NaN : Math.exp(totals.loss);
    const isPreview = known.exactly === false && Number.isFinite(predicted); // a run is next to the prediction
    const ratio = isPreview ? predicted : (known.ratio ?? predicted);
    const { nbytes } = predictions.totals(view.dense);
    if (this.view !== view) {
      this.uniform = this.#uniform(view);
      this.lines = [...predictions.fronts.values()].map(({ color: hue, points }) => ({
        color: hue,
        points: points.map((mix) => {
          const place = { nbytes: mix.nbytes, ratio: Math.exp(mix.loss), mix };
          return { ...place, words: said(place.nbytes, place.ratio, "predicted; click to take") };
        }),
      }));
    }
    this.view = view;
    const how = measured ? "live" : "predicted";
    const now = { nbytes: totals.nbytes, ratio, words: said(totals.nbytes, ratio, how) };
    tell(find(this.card, "h2"), this.#finding(view, now, totals, how));
    this.chart.draw({
      lines: this.lines,
      height,
      measured,
      dense: { nbytes, ratio: 1, words: `Dense, ${megabytes(nbytes)}` },
      now,
      uniform: this.uniform,
      files: model.landmarks.map(
        ({ file, megabytes: size, ratio: worse, low, high, source }, at) => ({
          nbytes: 1e6 * size,
          ratio: worse,
          interval: [low, high],
          side: at % 2 ? "left" : "right", // neighbors stand apart
          short: file,
          words: `${file} of llama.cpp: ${said(1e6 * size, worse, `measured by ${source}`)}`,
        }),
      ),
      runs: this.#runs(model),
      kept: view.kept.map((each, place) => ({
        ...each,
        words: `${place + 1}: ${said(each.nbytes, each.ratio, each.how)}`,
      })),
    });
    find(this.card, ".workbench-legend").hidden = !predictions.fronts.size;
    find(this.card, ".workbench-diamond").hidden = !model.landmarks.length;
    const key = JSON.stringify([view.kept, model.runs]);
    if (this.box.dataset.key === key) return;
    this.box.dataset.key = key;
    const states = [...this.#keptButtons(view), ...this.#queuedButtons(model)];
    const none = "Keep saves this state as a point to return to.";
    this.box.replaceChildren(...(states.length ? states : [none]));
  }

  /** Runs of the model. @param {import("./view.js").Start} model @returns {Point[]} */
  #runs({ runs }) {
    return runs.map((each) => ({
      run: each.run,
      nbytes: each.nbytes,
      ratio: each.final ?? NaN,
      predicted: each.predicted,
      words: `${each.run}, ${each.label}: ${megabytes(each.nbytes)}, ${became(each)}`,
    }));
  }

  /** Size and loss of this state, and the largest uniform format that is no smaller and loses more.
      @param {View} view @param {Point} now @param {Totals} totals @param {string} how */
  #finding({ isDense }, { nbytes, ratio }, { rounded }, how) {
    if (isDense || !Number.isFinite(ratio)) return "Size against quality";
    const loss = (/** @type {number} */ each) =>
      `${each < 1 ? "−" : "+"}${share(Math.abs(each - 1))}`;
    const own = `${megabytes(nbytes)} at ${loss(ratio)} perplexity, ${how}`;
    const [rival] = this.uniform
      .filter((each) => each.quantized === rounded > 0)
      .filter((each) => each.nbytes >= nbytes && each.ratio > ratio)
      .sort((a, b) => b.nbytes - a.nbytes);
    if (!rival) return own;
    const all = rival.short?.replace("%", "% zeros");
    return `${own}; all ${all}: ${megabytes(rival.nbytes)} at ${loss(rival.ratio)}`;
  }

  /** All layers of the blocks in one format. @param {View} view @returns {Point[]} */
  #uniform({ predictions, layers, known }) {
    return predictions.formats.flatMap((form) => {
      const formats = layers.map(({ block, columns }) =>
        block >= 0 && fits(form, columns) ? form : known.dense,
      );
      const { nbytes, loss, unknown } = predictions.totals(formats);
      if (unknown) return [];
      const ratio = Math.exp(loss);
      const words = `All ${form.label}: ${said(nbytes, ratio, "predicted")}`;
      const { short } = form;
      const quantized = Boolean(form.width);
      return [{ nbytes, ratio, words, short, quantized, color: form.color ?? "" }];
    });
  }

  /** @param {View} view */
  #keptButtons(view) {
    return view.kept.flatMap(({ address, nbytes, ratio }, place) => {
      const name = `${place + 1} · ${megabytes(nbytes)} · ${times(ratio)}`;
      const [open, drop] = [`Open state ${place + 1}`, `Drop state ${place + 1}`];
      const dropped = () => {
        view.keep(view.kept.toSpliced(place, 1));
        this.on.drop();
      };
      return [
        button(name, () => this.on.open(address), { title: open, ariaLabel: open }),
        button("×", dropped, { title: drop, ariaLabel: drop, className: "drop" }),
      ];
    });
  }

  /** @param {import("./view.js").Start} model */
  #queuedButtons({ runs }) {
    const queued = runs.filter((each) => each.queued).slice(0, MOST_QUEUED);
    return queued.map((each) => {
      const title = `Open the state of ${each.run}`;
      const open = () => this.on.open(each.state);
      return button(`${each.run} · ${became(each)}`, open, { title, ariaLabel: title });
    });
  }
}
