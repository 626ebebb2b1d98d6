/* The view of one model on the Workbench: its state, and the layers that are chosen and looked at. */
import { addressOf, bitsPerWeight, fits, Formats } from "./formats.js";
import { Predictions } from "./predictions.js";

/** @typedef {import("./formats.js").Format} Format */
/** @typedef {import("./formats.js").State} State */
/** @typedef {import("./formats.js").Method} Method */
/** @typedef {import("./predictions.js").Layer} Layer */
/** @typedef {{refused: string} | {identity: string, pruner: string, quantizer: string,
      formats: import("./formats.js").Names[], parts: import("./formats.js").Parts}} SentState
    `refused`: why the address of a state cannot be opened. */
/** @typedef {{run: string, at: string, final: number | null, predicted: number | null, live: number | null, tokens: number,
      state: string, nbytes: number}} QueuedRun
    A run that was queued from a state; figures are perplexities over dense, `at` is the state of the run. */
/** @typedef {{model: string, title: string, models: [title: string, name: string, profiled: boolean][],
      layers: Layer[], modules: string[], rest: number,
      runs: [run: string, label: string, nbytes: number, ratio: number][], queued: QueuedRun[],
      widths: number[], groups: number[], patterns: string[], parts: import("./formats.js").Parts,
      colors: {dense: string, unchanged: string}, pruners: string[], quantizers: string[], instant: string[],
      made: {pruner: string, quantizer: string}, profile: string, partial: boolean, perplexity: number | null,
      live: {why: string, do: string, bytes: number}, state: SentState | null}} Start
    The answer of `ui/pages/workbench/tables.py`. `instant`: methods that are made at once; `made`: those of the profile. */
/** @typedef {{address: string, nbytes: number, ratio: number, how: string}} Kept A state that a person has kept. */
/** @typedef {{unit: "size" | "read" | "loss", front: string, group: number | null}} Settings Of the knobs. */
/** @typedef {{name: string, state: string} & import("./tensor.js").Counts} LiveTensor
    A layer as the live model holds it, at the address of a state. */

const ATTENTION = /attn|attention/;

export class View {
  hovered = -1;
  holding = false;
  focus = 0;
  color = "";
  bell = "";
  /** @type {Set<number>} */
  pinned = new Set();
  /** @type {import("./tensor.js").DenseTensor | string | null} */
  tensor = null; // or why there is none
  /** @type {LiveTensor | null} */
  exact = null;
  /** @type {State[]} */
  done = [];
  /** @type {State[]} */
  undone = [];

  /** @param {Start} model @param {import("./predictions.js").Profile | null} profile @param {Settings} settings */
  constructor(model, profile, settings) {
    this.model = model;
    this.layers = model.layers;
    this.etag = profile?.etag ?? "";
    this.known = new Formats(model.parts);
    this.predictions = new Predictions(model.layers, model.rest, this.known, profile);
    const front = this.predictions.fronts.keys().next().value ?? "";
    this.settings = { ...settings, front };
    this.dense = this.layers.map(() => this.known.dense);
    /** @type {State} */
    this.now = { identity: "", ...model.made, formats: this.dense };
    this.chosen = this.scope("all");
    /** @type {Kept[]} */
    this.kept = JSON.parse(localStorage.getItem(this.#place) ?? "[]");
    this.map = this.#mapped();
  }

  /** The layers as a map takes them: a row for each module, then one for each layer outside of the blocks. */
  #mapped() {
    const outside = this.layers.filter(({ block }) => block < 0).map(({ module }) => module);
    const cells = new Map(this.layers.map(({ block, module }, i) => [`${block} ${module}`, i]));
    return {
      tensors: this.layers,
      modules: [...this.model.modules, ...outside],
      blocks: [...new Set(this.layers.map(({ block }) => block))].filter((block) => block >= 0),
      at: (/** @type {number} */ block, /** @type {string} */ module) =>
        cells.get(`${outside.includes(module) ? -1 : block} ${module}`) ?? -1,
    };
  }

  /** Where the browser stores what was kept. */
  get #place() {
    return `slimscope-workbench-${this.model.model}`;
  }
  /** @param {Kept[]} kept */
  keep(kept) {
    this.kept = kept;
    localStorage.setItem(this.#place, JSON.stringify(kept));
  }

  /** The formats that are shown: those of the state, or dense while that is held. */
  get formats() {
    return this.holding ? this.dense : this.now.formats;
  }
  get address() {
    return addressOf(this.now);
  }
  get isDense() {
    return this.now.formats.every((form) => form === this.known.dense);
  }
  get layer() {
    return this.layers[this.focus];
  }
  /** The name of the colors of the map: as somebody has chosen; else of formats, and of possible losses before anything
      is changed. */
  get coloring() {
    return this.color || (this.isDense && this.predictions.run ? "sensitivity" : "format");
  }

  /** The layers of a scope. @param {string} name */
  scope(name) {
    /** @type {Record<string, (layer: Layer) => boolean>} */
    const tests = {
      all: ({ block }) => block >= 0,
      attention: ({ block, module }) => block >= 0 && ATTENTION.test(module),
      mlp: ({ block, module }) => block >= 0 && !ATTENTION.test(module),
      block: ({ block }) => block === this.layer.block,
      outside: ({ block }) => block < 0,
    };
    const test = tests[name] ?? (({ module }) => module === name);
    return new Set([...this.layers.keys()].filter((i) => test(this.layers[i])));
  }

  /** The name of a scope that has just the chosen layers; "" where there is none. */
  get scoped() {
    const names = ["all", "attention", "mlp", "block", "outside", ...this.model.modules];
    const same = (/** @type {Set<number>} */ set) =>
      set.size === this.chosen.size && [...set].every((i) => this.chosen.has(i));
    return names.find((name) => same(this.scope(name))) ?? "";
  }

  /** Is true of all chosen layers, if there are any. @param {(layer: Layer, i: number) => boolean} test */
  all(test) {
    return [...this.chosen].every((i) => test(this.layers[i], i));
  }

  /** Is true where a knob shows at once what a run makes. @param {Method} knob */
  isInstant(knob) {
    return this.model.instant.includes(this.now[knob]);
  }

  /** The score that layers are pruned by at once; Wanda's also for pruners that work block by block later.
      @returns {import("./tensor.js").Score} */
  get score() {
    return this.isInstant("pruner") ? "magnitude" : "wanda";
  }

  /** Is true where the profile was made by other methods than those of the state.
      @param {import("./predictions.js").Totals} totals */
  isMadeOtherwise({ zeros, rounded }) {
    const { made } = this.model;
    const { pruner, quantizer } = this.now;
    return (made.pruner !== pruner && zeros > 0) || (made.quantizer !== quantizer && rounded > 0);
  }

  /** Perplexity over dense as it is predicted; NaN where it is not.
      @param {import("./predictions.js").Totals} totals */
  predicted({ loss, unknown }) {
    return !this.predictions.run || unknown ? NaN : Math.exp(loss);
  }

  /** The figures of the state that a run keeps which is queued from it; only a prediction for the methods of the state.
      @param {import("./measured.js").Known} known */
  summary({ ratio: live, tokens }) {
    const totals = this.predictions.totals(this.now.formats);
    const predicted = this.isMadeOtherwise(totals) ? NaN : this.predicted(totals);
    return {
      ...(Number.isFinite(predicted) ? { predicted } : {}),
      ...(live ? { live, tokens } : {}),
    };
  }

  /** The size of groups of new widths, 0: whole rows. */
  get group() {
    const { settings, predictions, model } = this;
    if (settings.group !== null) return settings.group;
    return predictions.formats.find(({ width, group }) => width && group)?.group ?? model.groups[1];
  }

  /** The name of a width of so many bits in these groups; "" of 16 bits. @param {number} bits */
  width(bits) {
    return bits === 16 ? "" : this.known.width(bits, this.group);
  }

  /** The formats after a change of every chosen layer that they fit. Embedding and head are rounded only, in the groups that
      were profiled. @param {(form: Format) => {pattern: string, width: string}} change */
  turned(change) {
    return this.now.formats.map((form, i) => {
      if (!this.chosen.has(i)) return form;
      const { pattern, width } = change(form);
      const wanted =
        this.layers[i].block < 0 ? this.#outside(i, width) : this.known.of(pattern, width);
      return fits(wanted, this.layers[i].columns) ? wanted : form;
    });
  }

  /** @param {number} i @param {string} width */
  #outside(i, width) {
    const wanted = this.known.of("", width);
    const profiled = this.predictions.formats.find(
      (form) => form.bits === wanted.bits && this.predictions.figure("predicted", i, form) >= 0,
    );
    return (width && profiled) || wanted;
  }

  /** Bits a weight on a row of usual length, to order formats by. @param {Format} form */
  bits(form) {
    return bitsPerWeight(form, 4096);
  }

  /** The budgets between which the slider moves, on a log scale where they are losses. */
  get budgets() {
    const { unit, front } = this.settings;
    const points = this.predictions.fronts.get(front)?.points ?? [];
    const [first, last] = [points[0], points[points.length - 1]].map((point) =>
      this.predictions.totals(this.predictions.mix(point, this.now.formats, this.pinned)),
    );
    if (unit === "loss") {
      const low = 1e-3;
      const log = Math.log(Math.max(0.01, Math.min(10, Math.exp(first.loss) - 1)) / low);
      return {
        value: (/** @type {number} */ part) => low * Math.exp(part * log),
        part: (/** @type {number} */ value) => Math.log(Math.max(value, low) / low) / log,
      };
    }
    const [low, high] = unit === "size" ? [first.nbytes, last.nbytes] : [first.read, last.read];
    return {
      value: (/** @type {number} */ part) => low + part * (high - low),
      part: (/** @type {number} */ value) => (value - low) / (high - low || 1),
    };
  }

  /** The amount of the budget that a state takes. @param {import("./predictions.js").Totals} totals */
  spent({ loss, nbytes, read }) {
    return { loss: Math.exp(loss) - 1, size: nbytes, read }[this.settings.unit];
  }

  /** The formats of the best mix within a part of the budget, from 0 to 1. @param {number} part */
  solved(part) {
    const { unit, front } = this.settings;
    const points = this.predictions.fronts.get(front)?.points ?? [];
    const isLoss = unit === "loss";
    const most = this.budgets.value(part) + (isLoss ? 0 : 1);
    return this.predictions.solve(
      points,
      this.now.formats,
      this.pinned,
      (totals) => this.spent(totals) <= most,
      isLoss,
    );
  }

  /** A state of the server, its formats put together. Throws an Error that says why there is none.
      @param {SentState | null} sent @returns {State} */
  opened(sent) {
    if (!sent || "refused" in sent) throw new Error(sent?.refused);
    const { identity, pruner, quantizer, formats, parts } = sent;
    this.known.add(parts);
    return { identity, pruner, quantizer, formats: this.known.all(formats) };
  }
}
