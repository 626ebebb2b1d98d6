/* The recorded histograms and statistics of a run, in the format of `ui/widgets/packed.py`. */

/** @typedef {{name: string, label: string, short?: string, main?: boolean, pruned?: boolean,
    trained?: boolean, color: string, dash: string,
    perplexity?: number | null}} SentStage `main`: a step on the way to the result */
/** @typedef {SentStage & {short: string}} Stage `short`: label for narrow places */
/** @typedef {{name: string, label: string, question: string, percent: boolean}} Statistic */
/** @typedef {{name: string, label: string, block: number, module: string}} Tensor */
/** @typedef {[label: string, value: string]} Choice */
/** @typedef {import("./canvas.js").Range} Range */

/**
 * Header of a run's binary (`ui/pages/weights/histograms.py`). Optional fields are only sent to the page.
 * @typedef {object} RunHeader
 * @property {string} run
 * @property {string} model
 * @property {string} kept name of the stage whose weights the run kept
 * @property {number} bins of each histogram
 * @property {number} merged bins that were recorded for each one here
 * @property {SentStage[]} stages
 * @property {string[]} modules
 * @property {[name: string, label: string, block: number, module: string][]} tensors
 * @property {Statistic[]} statistics
 * @property {string[]} unlisted statistics without a label, after the others
 * @property {[label: string, run: string, model: string][]} [runs] runs with statistics
 * @property {{before: string, after: string, rival: string, note: string}} [effect] stages that say what the method did
 * @property {{stage: string, stat: string, tensor: string}} [defaults]
 */

/** @typedef {Uint8Array | Uint16Array | Uint32Array | Float32Array | Float64Array} NumberArray */
/** @typedef {{shape: number[], data: NumberArray}} PackedArray */
/** @template Header @typedef {{head: Header, arrays: Record<string, PackedArray>, etag: string}} Packed */
/** @typedef {{n: number, zeros: number, below: number, above: number, share: number}} Tail Numbers of all weights, of
    exact zeros, and of those below and above the bins; `share`: of zeros. */

/** @type {Record<string, new (buffer: ArrayBuffer, offset: number, length: number) => NumberArray>} */
const TYPES = {
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
  f4: Float32Array,
  f8: Float64Array,
};
const MIN_BINS = 64;
const WEIGHTS_PER_BIN = 100; // on average, at least

export class Histograms {
  /** @param {{head: RunHeader, arrays: Record<"tails" | "edges" | "values" | "counts", {data: ArrayLike<number>}>}} packed
      @param {string} [etag] */
  constructor({ head, arrays }, etag = "") {
    this.etag = etag;
    this.run = head.run;
    this.model = head.model;
    this.kept = head.kept;
    this.bins = head.bins;
    this.merged = head.merged;
    /** @type {Stage[]} */
    this.stages = head.stages.map((stage) => ({ ...stage, short: stage.short ?? stage.label }));
    this.modules = head.modules;
    this.statistics = head.statistics;
    this.runs = head.runs ?? [];
    this.effect = head.effect ?? { before: "", after: "", rival: "", note: "" };
    this.defaults = head.defaults ?? { stage: "", stat: "", tensor: "" };
    /** @type {Tensor[]} */
    this.tensors = head.tensors.map(([name, label, block, module]) => ({
      name,
      label,
      block,
      module,
    }));
    this.blocks = [...new Set(this.tensors.map(({ block }) => block))].sort((a, b) => a - b);
    const main = this.stages.flatMap((stage, s) => (stage.main ? [s] : []));
    this.main = main.length > 1 ? main : this.stages.map((_, s) => s);
    this.tails = arrays.tails.data;
    this.edges = arrays.edges.data;
    this.values = arrays.values.data;
    this.allCounts = /** @type {NumberArray} */ (arrays.counts.data);
    this.places = [...this.statistics.map(({ name }) => name), ...head.unlisted];
    this.percent = new Set(this.statistics.filter((s) => s.percent).map(({ name }) => name));
    this.cells = new Map(this.tensors.map((each, t) => [`${each.block} ${each.module}`, t]));
  }

  /** Index of a tensor; -1 where there is none. @param {string} name */
  tensor(name) {
    return this.tensors.findIndex((tensor) => tensor.name === name);
  }

  /** Index of a stage; -1 where there is none. @param {string} name */
  stage(name) {
    return this.stages.findIndex((stage) => stage.name === name);
  }

  /** Index of the default reference of a stage: the first compressed stage, or else the first. @param {number} s */
  reference(s) {
    const before = this.stage(this.effect.before);
    return before >= 0 && before < s ? before : this.main[0];
  }

  /** Index of the tensor of a block and module; -1 where there is none. @type {(block: number, module: string) => number} */
  at(block, module) {
    return this.cells.get(`${block} ${module}`) ?? -1;
  }

  /** True if a tensor was recorded at a stage. @type {(t: number, s: number) => boolean} */
  has(t, s) {
    return t >= 0 && s >= 0 && this.tail(t, s).n > 0;
  }

  /** @type {(t: number, s: number) => Tail} */
  tail(t, s) {
    const at = 4 * (t * this.stages.length + s);
    const [n, zeros, below, above] = [0, 1, 2, 3].map((i) => this.tails[at + i]);
    return { n, zeros, below, above, share: n ? zeros / n : 0 };
  }

  /** First and last edge of the bins, at all stages. @type {(t: number) => Range} */
  range(t) {
    return [this.edges[2 * t], this.edges[2 * t + 1]];
  }

  /** Weights in each bin. @type {(t: number, s: number) => NumberArray} */
  counts(t, s) {
    const at = (t * this.stages.length + s) * this.bins;
    return this.allCounts.subarray(at, at + this.bins);
  }

  /** A stored statistic, NaN where not measured. @type {(name: string, t: number, s: number) => number} */
  value(name, t, s) {
    const place = this.places.indexOf(name);
    const at = (place * this.tensors.length + t) * this.stages.length + s;
    return place < 0 ? NaN : this.values[at];
  }

  /** A statistic in its unit, such as %. @type {(name: string, t: number, s: number) => number} */
  shown(name, t, s) {
    return this.value(name, t, s) * (this.percent.has(name) ? 100 : 1);
  }

  /** The magnitude threshold of a pruned stage, else NaN: zeros that rounding left were not chosen by size.
      @type {(t: number, s: number) => number} */
  cutoff(t, s) {
    return this.stages[s].pruned ? this.value("cutoff", t, s) : NaN;
  }

  /** Percent of all weights in each bin. @param {number} t @param {number} s @param {number} [bins] fewer where bins
      hold too few weights to have a shape */
  heights(t, s, bins = this.fewer(t)) {
    const counts = this.counts(t, s);
    const merged = this.bins / bins;
    const n = this.tail(t, s).n || 1;
    const heights = new Float64Array(bins);
    for (let i = 0; i < counts.length; i++)
      heights[Math.floor(i / merged)] += (100 * counts[i]) / n;
    return heights;
  }

  /** Bins of a tensor that hold enough weights on average. @param {number} t */
  fewer(t) {
    let { bins } = this;
    const n = Math.min(...this.stages.map((_, s) => this.tail(t, s).n).filter(Boolean));
    while (bins > MIN_BINS && n < WEIGHTS_PER_BIN * bins) bins /= 2;
    return bins;
  }

  /** Share of all weights with a magnitude in a range, taken to lie evenly in their bins; exact zeros where it begins
      at 0. @param {number} t @param {number} s @param {Range} magnitudes */
  within(t, s, [low, high]) {
    const [from, to] = this.range(t);
    const counts = this.counts(t, s);
    const width = (to - from) / this.bins;
    const tail = this.tail(t, s);
    let sum = low === 0 ? tail.zeros : 0;
    for (let i = 0; i < counts.length; i++) {
      if (!counts[i]) continue;
      const left = from + i * width;
      const right = left + width;
      const positive = Math.max(0, Math.min(right, high) - Math.max(left, low));
      const negative = Math.max(0, Math.min(right, -low) - Math.max(left, -high));
      sum += (counts[i] * (positive + negative)) / width;
    }
    return tail.n ? sum / tail.n : NaN;
  }

  /** Half of an axis that shows the middle part of the weights that are not zero. @param {number} t
      @param {number[]} stages @param {number} [part] */
  reach(t, stages, part = 0.998) {
    const [from, to] = this.range(t);
    const width = (to - from) / this.bins;
    let reach = 0;
    for (const s of stages) {
      const counts = this.counts(t, s);
      const tail = this.tail(t, s);
      const beyond = ((1 - part) / 2) * (tail.n - tail.zeros);
      let left = tail.below;
      let right = tail.above;
      let i = 0;
      let j = counts.length - 1;
      while (i < j && (left += counts[i]) < beyond) i++;
      while (j > i && (right += counts[j]) < beyond) j--;
      reach = Math.max(reach, Math.abs(from + i * width), Math.abs(from + (j + 1) * width));
    }
    return Math.min(reach, Math.max(Math.abs(from), Math.abs(to))) || 1;
  }
}

/** The server has no such data; `html` gives the reason, escaped. */
export class NoData extends Error {
  /** @param {string} message @param {string} html */
  constructor(message, html) {
    super(message);
    this.html = html;
  }
}

/** A binary as its header and its arrays by name. The browser keeps it and asks only if it has changed. Throws
    `NoData`. @template Header @param {Record<string, string>} query @param {string} [path]
    @returns {Promise<Packed<Header>>} */
export async function fetched(query, path = "weights") {
  const address = `slimscope/${path}?${new URLSearchParams(query)}`;
  const answer = await fetch(address, { cache: "no-cache" });
  if (!answer.ok || answer.headers.get("content-type")?.startsWith("application/json")) {
    /** @type {{what: string, why?: string, html?: string}} */
    const { what, why, html } = await answer
      .json()
      .catch(() => ({ what: `The server answered ${answer.status}.` }));
    throw new NoData([what, why].filter(Boolean).join(" "), html ?? "");
  }
  const buffer = await answer.arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  /** @type {[string, [type: string, offset: number, shape: number[]]][]} */
  const places = Object.entries(head.arrays);
  const arrays = places.map(([name, [type, offset, shape]]) => {
    const size = shape.reduce((product, n) => product * n, 1);
    return [name, { shape, data: new TYPES[type](buffer, 4 + length + offset, size) }];
  });
  return { head, arrays: Object.fromEntries(arrays), etag: answer.headers.get("etag") ?? "" };
}

/** The histograms of a run. @param {string} run "" for the newest */
export async function load(run) {
  /** @type {Packed<RunHeader>} */
  const packed = await fetched(run ? { run } : {});
  return new Histograms(packed, packed.etag);
}

/** Profiles of a tensor by "BLOCK/STAGE/NAME", or single weights by stage.
    @type {(run: string, tensor: string, query: Record<string, string>) => Promise<Packed<{first: [output: number, input: number]}>>}
    */
export const profiles = (run, tensor, query) => fetched({ run, tensor, ...query });
