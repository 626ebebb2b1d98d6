/* The weights of one layer in any format, made in the browser at the speed of a slider, as `backend/live/dense.py` makes
   them at once: pruned by magnitude in the whole layer, or in each row by Wanda's score |w| sqrt(E x^2); rounded to
   nearest on a symmetric grid. */
import { Histograms, fetched } from "../weights/histograms.js";

/** @typedef {import("./formats.js").Format} Format */
/** @typedef {"magnitude" | "wanda"} Score */
/** @typedef {{shape: number[], data: Float32Array}} Matrix */
/** @typedef {{head: {name: string, bins: number, edge: number}, arrays: Record<string, Matrix>}} SentTensor
    `weights` and, where a run has stored it, `energy` of the inputs; the bins run from -`edge` to `edge`. */
/** @typedef {{counts: ArrayLike<number>, tails: number[]}} Counts
    `counts` in bins; `tails`: all weights, exact zeros, those below and above the bins. */

/** @typedef {{first: Uint8Array, joint: Uint32Array}} Tables */

const STEP_MS = 10; // between which the page answers
const CHUNK = 2 ** 17; // weights of a step
const RADIX = 2 ** 11;
const KEPT = 12; // most recently used layers in memory

export class DenseTensor {
  /** @type {Map<Score, Tables>} */
  #tables = new Map();
  /** @type {Counts & {key: string}} */
  #made = { key: "", counts: [], tails: [] };
  /** @type {Counts | null} */
  #whole = null;

  /** @param {SentTensor} sent */
  constructor({ head, arrays: { weights, energy } }) {
    this.name = head.name;
    this.rows = weights.shape[0];
    this.columns = weights.shape[1];
    this.w = weights.data;
    this.root = energy ? energy.data.map(Math.sqrt) : null;
    this.edge = head.edge;
    this.bins = head.bins;
  }

  /** Tables of a score: the whole percentage at which each weight is dropped first, and how many of each bin are at each;
      then a slider adds rows of one table, and looks at no weight. @param {Score} score */
  prepare(score) {
    const steps = this.#preparing(score);
    for (;;) {
      const { done, value } = steps.next();
      if (done) return value;
    }
  }

  /** Computes the tables in short steps, which keep the page responsive. @param {Score} score */
  async prepareLater(score) {
    const steps = this.#preparing(score);
    for (let begin = performance.now(); !steps.next().done;) {
      if (performance.now() - begin < STEP_MS) continue;
      await new Promise((next) => setTimeout(next));
      begin = performance.now();
    }
  }

  /** @param {Score} score @returns {Generator<void, Tables, void>} */
  *#preparing(score) {
    const kept = this.#tables.get(score);
    if (kept) return kept;
    const { w, rows, columns } = this;
    const root = score === "wanda" ? this.root : null;
    const n = score === "wanda" ? columns : rows * columns;
    const width = this.bins + 3;
    const first = new Uint8Array(w.length);
    const joint = new Uint32Array(101 * width);
    const scores = new Float32Array(n);
    for (let start = 0; start < w.length; start += n) {
      for (let i = 0; i < n; i++) scores[i] = Math.abs(w[start + i]) * (root ? root[i] : 1);
      yield;
      const order = yield* ascending(scores);
      for (let rank = 0, percent = 1; rank < n; rank++) {
        while (rank >= Math.floor((n * percent) / 100 + 1e-6)) percent++;
        const i = start + order[rank];
        first[i] = percent;
        joint[percent * width + this.#bin(w[i])]++;
        if (rank % CHUNK === CHUNK - 1) yield;
      }
    }
    const tables = { first, joint };
    this.#tables.set(score, tables);
    return tables;
  }

  /** Bin from -edge to edge, or the bin of exact zeros, of smaller or of larger values. @param {number} value */
  #bin(value) {
    if (value === 0) return this.bins;
    const at = ((value + this.edge) * this.bins) / (2 * this.edge);
    if (at < 0) return this.bins + 1;
    return at > this.bins ? this.bins + 2 : Math.min(at | 0, this.bins - 1);
  }

  /** Weights with only the pattern of a format. @param {Format} form @param {Score} score */
  pruned({ of, drop, keep }, score) {
    const out = this.w.slice();
    if (of) this.#groups(out, keep, of, score === "wanda" ? this.root : null);
    else if (drop) {
      const { first } = this.prepare(score);
      const percent = Math.round(100 * drop);
      for (let i = 0; i < out.length; i++) if (first[i] <= percent) out[i] = 0;
    }
    return out;
  }

  /** @param {Float32Array} out @param {number} keep @param {number} of @param {Float32Array | null} root */
  #groups(out, keep, of, root) {
    const scores = new Float32Array(of);
    for (let start = 0; start < out.length; start += of) {
      for (let i = 0; i < of; i++)
        scores[i] = Math.abs(out[start + i]) * (root ? root[(start + i) % this.columns] : 1);
      for (let i = 0; i < of; i++) {
        let beaten = 0;
        for (let j = 0; j < of; j++)
          if (scores[j] > scores[i] || (scores[j] === scores[i] && j < i)) beaten++;
        if (beaten >= keep) out[start + i] = 0;
      }
    }
  }

  /** The histogram of the dense weights. */
  get whole() {
    this.#whole ??= this.#counted(this.w);
    return this.#whole;
  }

  /** The histogram in a format. @param {Format} form @param {Score} score @returns {Counts} */
  histogram(form, score) {
    const key = `${form.text} ${score}`;
    if (this.#made.key !== key) this.#made = { key, ...this.#inFormat(form, score) };
    return this.#made;
  }

  /** @param {Format} form @param {Score} score @returns {Counts} */
  #inFormat(form, score) {
    if (!form.pattern && !form.width) return this.whole;
    if (form.of || form.width) {
      const values = this.pruned(form, score);
      if (form.width) round(values, form.bits, form.group || this.columns);
      return this.#counted(values);
    }
    const { joint } = this.prepare(score);
    const sums = new Uint32Array(this.bins + 3);
    const kept = (Math.round(100 * form.drop) + 1) * sums.length;
    for (let at = sums.length; at < joint.length; at++)
      sums[at < kept ? this.bins : at % sums.length] += joint[at];
    return this.#split(sums);
  }

  /** @param {Float32Array} values */
  #counted(values) {
    const sums = new Uint32Array(this.bins + 3);
    for (const value of values) sums[this.#bin(value)]++;
    return this.#split(sums);
  }

  /** @param {Uint32Array} sums @returns {Counts} */
  #split(sums) {
    const tails = [this.w.length, ...sums.subarray(this.bins)];
    return { counts: sums.subarray(0, this.bins), tails };
  }
}

/** Places of positive scores in ascending order, of equal ones the last place first: a radix sort of their bits, which
    pauses between passes. @param {Float32Array} scores @returns {Generator<void, Uint32Array, void>} */
function* ascending(scores) {
  const n = scores.length;
  const bits = new Uint32Array(scores.buffer, scores.byteOffset, n);
  let from = new Uint32Array(n);
  let to = new Uint32Array(n);
  for (let i = 0; i < n; i++) from[i] = n - 1 - i;
  for (const shift of [0, 11, 22]) {
    const starts = new Uint32Array(RADIX + 1);
    for (let i = 0; i < n; i++) starts[((bits[i] >>> shift) & (RADIX - 1)) + 1]++;
    for (let digit = 0; digit < RADIX; digit++) starts[digit + 1] += starts[digit];
    for (let at = 0; at < n; at++) {
      const i = from[at];
      to[starts[(bits[i] >>> shift) & (RADIX - 1)]++] = i;
      if (at % CHUNK === CHUNK - 1) yield;
    }
    [from, to] = [to, from];
    yield;
  }
  return from;
}

/** The symmetric grid of values up to `most`: codes from 0 to 2 zero - 1, at (code - zero) scale with
    scale = most / (2^(bits-1) - 1/2). @param {number} most @param {number} bits */
export function grid(most, bits) {
  const zero = 2 ** (bits - 1);
  return { zero, scale: most / (zero - 0.5) || 1 };
}

/** Rounds groups to nearest on their grids, in place. @param {Float32Array} out @param {number} bits @param {number} group */
export function round(out, bits, group) {
  for (let start = 0; start < out.length; start += group) {
    let most = 0;
    for (let i = start; i < start + group; i++) most = Math.max(most, Math.abs(out[i]));
    const { zero, scale } = grid(most, bits);
    for (let i = start; i < start + group; i++) {
      const code = Math.round(out[i] / scale + zero);
      out[i] = (Math.max(0, Math.min(2 * zero - 1, code)) - zero) * scale;
    }
  }
}

/** @type {Map<string, Promise<DenseTensor>>} */
const tensors = new Map(); // "MODEL NAME" -> promise

/** The dense weights of a layer. @param {string} model @param {string} name */
export function dense(model, name) {
  const key = `${model} ${name}`;
  const found =
    tensors.get(key) ??
    fetched({ model, name }, "workbench/weights").then(
      (sent) => new DenseTensor(/** @type {SentTensor} */ (sent)),
    );
  tensors.delete(key);
  tensors.set(key, found);
  found.catch(() => tensors.delete(key));
  const [oldest] = tensors.keys();
  if (tensors.size > KEPT) tensors.delete(oldest);
  return found;
}

/** Data for the histogram of *Weights*: the dense and the current weights.
    @param {DenseTensor} tensor @param {import("./predictions.js").Layer} layer
    @param {[Counts, Counts]} both
    @param {import("../weights/histograms.js").SentStage[]} stages of these counts */
export function overlaid(tensor, layer, both, stages) {
  const counts = new Uint32Array(2 * tensor.bins);
  const tails = new Float64Array(8);
  both.forEach((each, s) => {
    counts.set(each.counts, s * tensor.bins);
    tails.set(each.tails, 4 * s);
  });
  return new Histograms({
    head: {
      run: "",
      model: "",
      kept: "live",
      bins: tensor.bins,
      merged: 1,
      stages,
      statistics: [],
      unlisted: [],
      modules: [layer.module],
      tensors: [[layer.name, layer.label, layer.block, layer.module]],
    },
    arrays: {
      tails: { data: tails },
      edges: { data: new Float64Array([-tensor.edge, tensor.edge]) },
      values: { data: new Float32Array() },
      counts: { data: counts },
    },
  });
}
