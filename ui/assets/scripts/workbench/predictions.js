/* Predictions of a profile for any state, and the best mixes under a budget; `slimscope/workbench/profile`. Between
   profiled sparsities, losses are interpolated on a log scale; a format outside of them has no prediction. */
import { fetched } from "../weights/histograms.js";
import { bitsPerWeight } from "./formats.js";

/** @typedef {import("./formats.js").Format} Format */
/** @typedef {{name: string, block: number, module: string, rows: number, columns: number, label: string}} Layer
    `block` -1: outside of the blocks. */
/** @typedef {{loss: number, unknown: number, untried: number, nbytes: number, read: number, bits: number, zeros: number,
      rounded: number}} Totals
    `loss`: nats a token; `unknown` layers are not in it, `untried` ones are but no such format was measured; `read`: bytes
    a token; `bits` a weight and share of `zeros` in the layers of the blocks; `rounded`: number of layers. */
/** @typedef {"predicted" | "error"} Figure */
/** @typedef {{codes: ArrayLike<number>, loss: number, nbytes: number, ms: number}} Mix `codes`: places of formats, 255:
    dense; `ms`: milliseconds a token. */
/** @typedef {{label: string, color: string, points: Mix[], timed: Mix[]}} Front Cheapest first; `timed`: fastest first,
    empty without times. */
/** @typedef {{run: string, formats: import("./formats.js").Names[], parts: import("./formats.js").Parts,
      fronts: [name: string, label: string, color: string][], timed: boolean, layers: string[]}} ProfileHead */
/** @typedef {{shape: number[], data: Float32Array | Uint8Array}} Table */
/** @typedef {{head: ProfileHead, arrays: Record<string, Table>, etag: string}} Profile */

const DENSE_CODE = 255;

export class Predictions {
  /** @type {Format[]} */
  #sparsities = [];

  /** @param {Layer[]} layers @param {number} rest bytes of the model beside them
      @param {import("./formats.js").Formats} known @param {Profile | null} profile */
  constructor(layers, rest, known, profile) {
    known.add(profile?.head.parts ?? {});
    this.layers = layers;
    this.rest = rest;
    this.dense = known.dense;
    this.run = profile?.head.run ?? "";
    this.formats = known.all(profile?.head.formats ?? []);
    this.arrays = profile?.arrays ?? {};
    this.rows = new Map((profile?.head.layers ?? []).map((name, row) => [name, row]));
    this.columns = new Map(this.formats.map((form, f) => [form, f]));
    this.#sparsities = this.formats
      .filter((form) => form.pattern && !form.of && !form.width)
      .sort((a, b) => a.drop - b.drop);
    this.inBlocks = layers.reduce(
      (sum, { block, rows, columns }) => sum + (block < 0 ? 0 : rows * columns),
      0,
    );
    /** @type {Map<string, Front>} */
    this.fronts = new Map(
      (profile?.head.fronts ?? []).map(([name, label, color]) => [
        name,
        {
          label,
          color,
          points: this.#points(name),
          timed: profile?.head.timed ? this.#points(`${name}_ms`) : [],
        },
      ]),
    );
  }

  /** Metric of a single layer in a format; NaN if unknown.
      @param {Figure} name @param {number} i @param {Format} form @returns {number} */
  figure(name, i, form) {
    if (form === this.dense) return 0;
    const row = this.rows.get(this.layers[i].name);
    if (row === undefined) return NaN;
    const at = (/** @type {Format} */ each) =>
      this.arrays[name].data[row * this.formats.length + (this.columns.get(each) ?? NaN)];
    if (this.columns.has(form)) return at(form);
    if (form.alone.length)
      return form.alone.reduce((sum, part) => sum + this.figure(name, i, part), 0);
    return form.of || form.width ? NaN : this.#between(form.drop, at);
  }

  /** True for a measured format, or one between two measured sparsities. @param {Format} form */
  isTried(form) {
    const [first] = this.#sparsities;
    const between = !form.of && !form.width && first !== undefined && form.drop >= first.drop;
    return form === this.dense || this.columns.has(form) || between;
  }

  /** @param {number} drop @param {(form: Format) => number} value */
  #between(drop, value) {
    const all = this.#sparsities;
    const above = all.findIndex((each) => each.drop > drop);
    if (all.length < 2 || above < 0) return NaN;
    const [a, b] = above ? [all[above - 1], all[above]] : all;
    const scale = above ? (/** @type {number} */ x) => x : Math.log; // a power law toward 0
    const part = (scale(drop) - scale(a.drop)) / (scale(b.drop) - scale(a.drop));
    return value(a) * (value(b) / value(a)) ** part;
  }

  /** @param {number} i @param {Format} form */
  nbytes(i, form) {
    const { rows, columns } = this.layers[i];
    return (rows * columns * bitsPerWeight(form, columns)) / 8;
  }

  /** @param {Format[]} formats @returns {Totals} */
  totals(formats) {
    const sums = {
      loss: 0,
      unknown: 0,
      untried: 0,
      nbytes: this.rest,
      read: 0,
      bits: 0,
      zeros: 0,
      rounded: 0,
    };
    const outside = this.layers.filter(({ block }) => block < 0).length;
    formats.forEach((form, i) => {
      const { block, rows, columns, module } = this.layers[i];
      const loss = this.figure("predicted", i, form);
      const nbytes = this.nbytes(i, form);
      if (Number.isFinite(loss)) sums.loss += loss;
      else sums.unknown++;
      if (!this.isTried(form)) sums.untried++;
      sums.nbytes += nbytes;
      if (block >= 0 || outside === 1 || !module.includes("embed")) sums.read += nbytes; // of an embedding alone, one row
      if (form.width) sums.rounded++;
      if (block < 0) return;
      sums.zeros += (form.drop * rows * columns) / this.inBlocks;
      sums.bits += (8 * nbytes) / this.inBlocks;
    });
    return sums;
  }

  /** @param {string} name of a front @returns {Mix[]} */
  #points(name) {
    const { data, shape } = this.arrays[`${name}_formats`];
    const [points, width] = shape;
    const [loss, nbytes, ms] = ["loss", "bytes", "ms"].map(
      (figure) => this.arrays[`${name}_${figure}`].data,
    );
    return Array.from({ length: points }, (_, p) => ({
      codes: data.subarray(p * width, (p + 1) * width),
      loss: loss[p],
      nbytes: nbytes[p],
      ms: ms[p],
    }));
  }

  /** Formats of an allocation in which pinned layers keep theirs.
      @param {Mix} point @param {Format[]} formats @param {Set<number>} pinned */
  mix(point, formats, pinned) {
    return formats.map((form, i) => {
      const row = this.rows.get(this.layers[i].name);
      if (pinned.has(i) || row === undefined) return form;
      const code = point.codes[row];
      return code === DENSE_CODE ? this.dense : this.formats[code];
    });
  }

  /** The last of the first mixes that are `within` a budget, or of those that are not if `isLoss` the next; the nearest
      mix where none is within.
      @param {Mix[]} points @param {(point: Mix) => boolean} within @param {boolean} isLoss */
  solve(points, within, isLoss) {
    let low = -1;
    let high = points.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (within(points[middle]) !== isLoss) low = middle;
      else high = middle - 1;
    }
    return points[Math.max(0, Math.min(points.length - 1, low + (isLoss ? 1 : 0)))];
  }

  /** Next smaller and next larger format of the same kind in the profile, with their effects.
      @param {number} i @param {Format} form */
  alternatives(i, form) {
    const own = this.nbytes(i, form);
    const pruned = Boolean(form.pattern && !form.width);
    const priced = [this.dense, ...this.formats.filter((each) => Boolean(each.pattern) === pruned)]
      .filter((each) => each !== form)
      .map((each) => ({
        form: each,
        more: this.nbytes(i, each) - own,
        loss: this.figure("predicted", i, each),
      }))
      .filter(({ loss }) => Number.isFinite(loss))
      .sort((a, b) => a.more - b.more);
    const cheaper = priced.filter(({ more }) => more < 0).slice(-1);
    return [...cheaper, ...priced.filter(({ more }) => more > 0).slice(0, 1)];
  }
}

/** Profile of a run; null if there is none or it is unavailable. @param {string} run
    @returns {Promise<Profile | null>} */
export async function profile(run) {
  if (!run) return null;
  try {
    return /** @type {Profile} */ (await fetched({ run }, "workbench/profile"));
  } catch {
    return null;
  }
}
