/* View of one model on the workbench: its state, selected layers, focused layer and budget. */
import { addressOf, bitsPerWeight, fits, Formats } from "./formats.js";
import { Predictions } from "./predictions.js";

/** @typedef {import("./formats.js").Format} Format */
/** @typedef {import("./formats.js").State} State */
/** @typedef {import("./formats.js").Method} Method */
/** @typedef {import("./predictions.js").Layer} Layer */
/** @typedef {{refused: string} | {identity: string, pruner: string, quantizer: string,
      formats: import("./formats.js").Names[], parts: import("./formats.js").Parts}} SentState
    `refused`: why the address of a state cannot be opened. */
/** @typedef {{run: string, label: string, at: string, state: string, pruner: string, quantizer: string, nbytes: number,
      final: number | null, stage: string, text: [windows: number, context: number], queued: boolean,
      predicted: number | null, live: number | null}} StateRun
    A run that makes a state; `at` is the state of the run, `pruner` and `quantizer` are "" for any, figures are
    perplexities over dense; `queued`: from the Workbench. */
/** @typedef {{model: string, title: string, models: [title: string, name: string, profiled: boolean][],
      layers: Layer[], modules: string[], rest: number,
      runs: StateRun[], landmarks: Landmark[],
      widths: number[], groups: number[], patterns: string[], parts: import("./formats.js").Parts,
      colors: {dense: string, unchanged: string, formats: string[]}, pruners: string[], quantizers: string[], instant: string[],
      made: {pruner: string, quantizer: string}, profile: string, partial: boolean,
      text: [windows: number, context: number], notice: string, known: string, empty: string,
      offer: {automatic: boolean} | null,
      live: {why: string, do: string, bytes: number}, state: SentState | null}} Start
    The answer of `ui/pages/workbench/tables.py`. `instant`: methods that are made at once; `made`: those of the profile;
    `text` of the profile; `notice`: HTML of what is missing, `known` of the facts of the profile; `empty`: words where
    there is no text; `offer`: a new profile. */
/** @typedef {{file: string, megabytes: number, ratio: number, low: number, high: number, source: string}} Landmark
    A file of llama.cpp. */
/** @typedef {{address: string, nbytes: number, ratio: number, how: string}} Kept A saved state. */
/** @typedef {"size" | "bits" | "sparsity" | "loss" | "ms"} Unit Kind of a budget. */
/** @typedef {{unit: Unit, front: string, group: number | null}} Settings Of the knobs; `front`: "" without a profile. */
/** @typedef {{form: Format, columns: number}} Misfit A format that a layer with this number of inputs cannot have. */
/** @typedef {{name: string, state: string} & import("./tensor.js").Counts} LiveTensor
    A layer as the live model holds it, at the address of a state. */

/** The part of an address that names the formats of all layers. @param {string} address */
const formatsOf = (address) => address.split("~").slice(3).join("~");
const ATTENTION = /attn|attention/;
const LEAST_LOSS = 1e-3; // of the slider, whose losses are on a log scale
const MOST_LOSS = 10;

export class View {
  hovered = -1;
  holding = false;
  focus = 0;
  color = "";
  at = ""; // format of the map's figures
  bell = "";
  /** @type {Set<number>} */
  pinned = new Set();
  /** @type {import("./tensor.js").DenseTensor | string | null} */
  tensor = null; // or why there is none
  /** @type {LiveTensor | null} */
  exact = null;
  /** @type {Map<string, number>} */
  times = new Map(); // address of a state -> predicted milliseconds a token
  /** @type {State[]} */
  done = [];
  /** @type {State[]} */
  undone = [];

  /** @param {Start} model @param {import("./predictions.js").Profile | null} profile @param {Settings} settings */
  constructor(model, profile, settings) {
    this.model = model;
    this.layers = model.layers;
    this.etag = profile?.etag ?? "";
    this.known = new Formats(model.parts, model.colors.formats);
    this.predictions = new Predictions(model.layers, model.rest, this.known, profile);
    this.settings = this.#offered(settings);
    this.dense = this.layers.map(() => this.known.dense);
    /** @type {State} */
    this.now = { identity: "", ...model.made, formats: this.dense };
    this.chosen = this.scope("all");
    /** @type {Kept[]} */
    this.kept = JSON.parse(localStorage.getItem(this.#place) ?? "[]");
    this.map = this.#mapped();
  }

  /** Layers for the map: one row per module, then one per layer outside the blocks. */
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

  /** Key of the saved states in the browser's storage. */
  get #place() {
    return `slimscope-workbench-${this.model.model}`;
  }
  /** @param {Kept[]} kept */
  keep(kept) {
    this.kept = kept;
    localStorage.setItem(this.#place, JSON.stringify(kept));
  }

  /** Shown formats: those of the state, or dense while it is held. */
  get formats() {
    return this.holding ? this.dense : this.now.formats;
  }
  get address() {
    return addressOf(this.now);
  }
  get isDense() {
    return this.now.formats.every((form) => form === this.known.dense);
  }
  /** Runs that make the state; that whose result is shown comes first. */
  get runs() {
    const { pruner, quantizer } = this.now;
    const formats = formatsOf(this.address);
    const made = this.model.runs.filter(
      (run) =>
        formatsOf(run.state) === formats &&
        (!run.pruner || run.pruner === pruner) &&
        (!run.quantizer || run.quantizer === quantizer),
    );
    return made.sort((a, b) => Number(b.final !== null) - Number(a.final !== null));
  }
  get layer() {
    return this.layers[this.focus];
  }
  /** Name of the map's colors: selected, or by default formats, or sensitivity for a dense model. */
  get coloring() {
    return this.color || (this.isDense && this.predictions.run ? "sensitivity" : "format");
  }

  /** Format of the map's values; null: each layer's own format. */
  get figuresAt() {
    const { formats } = this.predictions;
    if (this.at === "own" || (!this.at && !this.isDense)) return null;
    return (
      formats.find(({ text }) => text === this.at) ??
      formats.find(({ pattern, bits }) => !pattern && bits === 3) ??
      formats.at(0) ??
      null
    );
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

  /** Name of the scope with exactly the selected layers; "" if there is none. */
  get scoped() {
    const names = ["all", "attention", "mlp", "block", "outside", ...this.model.modules];
    const same = (/** @type {Set<number>} */ set) =>
      set.size === this.chosen.size && [...set].every((i) => this.chosen.has(i));
    return names.find((name) => same(this.scope(name))) ?? "";
  }

  /** True if layers are selected and all of them satisfy the test. @param {(layer: Layer, i: number) => boolean} test */
  all(test) {
    return [...this.chosen].every((i) => test(this.layers[i], i));
  }

  /** True if the preview equals the result of a run. @param {Method} knob */
  isInstant(knob) {
    return this.model.instant.includes(this.now[knob]);
  }

  /** The methods in use that take longer, each with that of its preview. @returns {[preview: string, method: string][]} */
  get slow() {
    const { pruner, quantizer } = this.now;
    const isPruned = this.formats.some(({ pattern }) => pattern);
    const isRounded = this.formats.some(({ width }) => width);
    /** @type {[string, string][]} */
    const slow = [];
    if (isPruned && !this.isInstant("pruner")) slow.push(["wanda", pruner]);
    if (isRounded && !this.isInstant("quantizer")) slow.push(["rtn", quantizer]);
    return slow;
  }

  /** The score that layers are pruned by at once; Wanda's also for pruners that work block by block later.
      @returns {import("./tensor.js").Score} */
  get score() {
    return this.isInstant("pruner") ? "magnitude" : "wanda";
  }

  /** True if the profile uses other methods than the state.
      @param {import("./predictions.js").Totals} totals */
  isMadeOtherwise({ zeros, rounded }) {
    const { made } = this.model;
    const { pruner, quantizer } = this.now;
    return (made.pruner !== pruner && zeros > 0) || (made.quantizer !== quantizer && rounded > 0);
  }

  /** Predicted perplexity ÷ dense; NaN without a prediction.
      @param {import("./predictions.js").Totals} totals */
  predicted({ loss, unknown }) {
    return !this.predictions.run || unknown ? NaN : Math.exp(loss);
  }

  /** The figures of the state that a run keeps which is queued from it; only a prediction for the methods of the state.
      @param {import("./measured.js").Known} known */
  summary({ ratio: live, low, high, tokens, context, exactly }) {
    const totals = this.predictions.totals(this.now.formats);
    const predicted = this.isMadeOtherwise(totals) ? NaN : this.predicted(totals);
    return {
      ...(Number.isFinite(predicted) ? { predicted } : {}),
      ...(live ? { live, tokens, context, preview: !exactly } : {}),
      ...(live && low && high ? { low, high } : {}),
    };
  }

  /** Group size of new widths; 0: one group per row. */
  get group() {
    const { settings, predictions, model } = this;
    if (settings.group !== null) return settings.group;
    return predictions.formats.find(({ width, group }) => width && group)?.group ?? model.groups[1];
  }

  /** Name of the width with these bits and groups; "" for 16 bits. @param {number} bits */
  width(bits) {
    return bits === 16 ? "" : this.known.width(bits, this.group);
  }

  /** The formats after a change of every chosen layer that they fit; `misfits`: the others. Embedding and head are rounded only, in the groups that
      were profiled. @param {(form: Format) => {pattern: string, width: string}} change */
  turned(change) {
    /** @type {Misfit[]} */
    const misfits = [];
    const formats = this.now.formats.map((form, i) => {
      if (!this.chosen.has(i)) return form;
      const { pattern, width } = change(form);
      const { block, columns } = this.layers[i];
      const wanted = block < 0 ? this.#outside(i, width) : this.known.of(pattern, width);
      if (fits(wanted, columns)) return wanted;
      misfits.push({ form: wanted, columns });
      return form;
    });
    return { formats, misfits };
  }

  /** @param {number} i @param {string} width */
  #outside(i, width) {
    const wanted = this.known.of("", width);
    const profiled = this.predictions.formats.find(
      (form) => form.bits === wanted.bits && this.predictions.figure("predicted", i, form) >= 0,
    );
    return (width && profiled) || wanted;
  }

  /** Bits per weight in a typical row, to sort formats. @param {Format} form */
  bits(form) {
    return bitsPerWeight(form, 4096);
  }

  /** Settings whose budget this profile can solve. @param {Settings} settings @returns {Settings} */
  #offered(settings) {
    const [front = ""] = this.predictions.fronts.keys();
    const wanted = this.predictions.fronts.get(settings.front);
    if (wanted && (settings.unit !== "ms" || wanted.timed.length)) return settings;
    return { ...settings, front, unit: front === "pruned" ? "sparsity" : "size" };
  }

  /** Best allocations along the budget. */
  get #points() {
    const { unit, front } = this.settings;
    const best = this.predictions.fronts.get(front);
    return (unit === "ms" ? best?.timed : best?.points) ?? [];
  }

  /** Amount of the budget that an allocation uses in addition to the pinned layers. @param {import("./predictions.js").Mix} point */
  #spentBy(point) {
    if (this.settings.unit === "ms") return point.ms;
    const formats = this.predictions.mix(point, this.now.formats, this.pinned);
    return this.spent(this.predictions.totals(formats));
  }

  /** Limits of the slider. */
  get budgets() {
    const points = this.#points;
    const [first, last] = [points[0], points[points.length - 1]].map((each) => this.#spentBy(each));
    if (this.settings.unit === "loss") {
      const log = Math.log(Math.max(0.01, Math.min(MOST_LOSS, first)) / LEAST_LOSS);
      return {
        value: (/** @type {number} */ part) => LEAST_LOSS * Math.exp(part * log),
        part: (/** @type {number} */ value) =>
          Math.log(Math.max(value, LEAST_LOSS) / LEAST_LOSS) / log,
      };
    }
    // finer steps for smaller models
    return {
      value: (/** @type {number} */ part) => first + part ** 2 * (last - first),
      part: (/** @type {number} */ value) =>
        Math.sqrt(Math.max(0, (value - first) / (last - first || 1))),
    };
  }

  /** Amount of the budget that a state with these totals uses.
      @param {import("./predictions.js").Totals} totals */
  spent({ loss, nbytes, bits, zeros }) {
    const { unit } = this.settings;
    if (unit === "ms") return this.times.get(this.address) ?? NaN;
    return { loss: Math.exp(loss) - 1, size: nbytes, bits, sparsity: zeros }[unit];
  }

  /** Formats of the best allocation within a share of the budget, 0 to 1. @param {number} part */
  solved(part) {
    const { unit } = this.settings;
    const limit = this.budgets.value(part);
    const room = unit === "size" ? 1 : 1e-9;
    const point = this.predictions.solve(
      this.#points,
      (each) =>
        unit === "sparsity"
          ? this.#spentBy(each) >= limit - room
          : this.#spentBy(each) <= limit + room,
      unit === "loss",
    );
    const formats = this.predictions.mix(point, this.now.formats, this.pinned);
    if (unit === "ms") this.times.set(addressOf({ ...this.now, formats }), point.ms);
    return formats;
  }

  /** State of the server with its formats. Throws an Error with the reason if there is none.
      @param {SentState | null} sent @returns {State} */
  opened(sent) {
    if (!sent || "refused" in sent) throw new Error(sent?.refused);
    const { identity, pruner, quantizer, formats, parts } = sent;
    this.known.add(parts);
    return { identity, pruner, quantizer, formats: this.known.all(formats) };
  }
}
