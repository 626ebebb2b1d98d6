/* What a profile predicts for any state, and the best mixes under a budget; `slimscope/workbench/profile`. Between the
   sparsities it has tried, losses are interpolated on a log scale; a format it cannot tell of has no prediction. */
import { fetched } from "../weights/histograms.js";
import { DENSE, bitsPerWeight, format } from "./formats.js";

/** @typedef {{loss: number, unknown: number, untried: number, nbytes: number, read: number, zeros: number, rounded: number}} Totals
    `loss`: nats a token; `unknown` layers are not in it, `untried` ones are but no such format was measured; `read`: bytes a token; `zeros`: share of the layers of the blocks; `rounded`: how many layers are. */

export class Predictions {
  #sparsities = [];

  /** @param {{head: any, arrays: any} | null} profile */
  constructor(layers, rest, profile) {
    Object.assign(this, {
      layers,
      rest,
      run: profile?.head.run ?? "",
      formats: profile?.head.formats ?? [],
      arrays: profile?.arrays ?? {},
    });
    this.rows = new Map((profile?.head.layers ?? []).map(([name], row) => [name, row]));
    this.columns = new Map(this.formats.map((text, f) => [text, f]));
    this.#sparsities = this.formats
      .map(format)
      .filter((each) => each.pattern && !each.of && !each.width)
      .sort((a, b) => a.drop - b.drop);
    this.inBlocks = layers.reduce(
      (sum, { block, rows, columns }) => sum + (block < 0 ? 0 : rows * columns),
      0,
    );
    this.fronts = new Map((profile?.head.fronts ?? []).map((name) => [name, this.#front(name)]));
  }

  /** A figure of a layer alone in a format; NaN where nothing is known. */
  figure(name, i, text) {
    if (text === DENSE) return 0;
    const row = this.rows.get(this.layers[i].name),
      at = (f) => this.arrays[name].data[row * this.formats.length + f];
    if (row === undefined) return NaN;
    if (this.columns.has(text)) return at(this.columns.get(text));
    const form = format(text);
    if (form.pattern && form.width)
      return this.figure(name, i, form.pattern) + this.figure(name, i, form.width);
    return form.of || form.width
      ? NaN
      : this.#between(form.drop, (each) => at(this.columns.get(each.text)));
  }

  /** Whether a format, or sparsities on both sides of it, were measured. */
  isTried(text) {
    const { drop, of, width } = format(text);
    return (
      text === DENSE ||
      this.columns.has(text) ||
      (!of && !width && drop >= this.#sparsities[0]?.drop)
    );
  }

  #between(drop, value) {
    const all = this.#sparsities,
      above = all.findIndex((each) => each.drop > drop);
    if (all.length < 2 || above < 0) return NaN;
    const [a, b] = above ? [all[above - 1], all[above]] : all,
      scale = above ? (x) => x : Math.log; // a power law towards 0
    const part = (scale(drop) - scale(a.drop)) / (scale(b.drop) - scale(a.drop));
    return value(a) * (value(b) / value(a)) ** part;
  }

  nbytes(i, text) {
    const { rows, columns } = this.layers[i];
    return (rows * columns * bitsPerWeight(format(text), columns)) / 8;
  }

  /** @returns {Totals} */
  totals(formats) {
    const found = {
        loss: 0,
        unknown: 0,
        untried: 0,
        nbytes: this.rest,
        read: 0,
        zeros: 0,
        rounded: 0,
      },
      outside = this.layers.filter(({ block }) => block < 0).length;
    formats.forEach((text, i) => {
      const { block, rows, columns, module } = this.layers[i],
        loss = text === DENSE ? 0 : this.figure("predicted", i, text),
        nbytes = this.nbytes(i, text);
      if (Number.isFinite(loss)) found.loss += loss;
      else found.unknown++;
      if (!this.isTried(text)) found.untried++;
      found.nbytes += nbytes;
      if (block >= 0 || outside === 1 || !module.includes("embed")) found.read += nbytes; // of an embedding alone, one row
      if (format(text).width) found.rounded++;
      if (block >= 0) found.zeros += (format(text).drop * rows * columns) / this.inBlocks;
    });
    return found;
  }

  /** The mixes on a front, cheapest first. */
  #front(name) {
    const [
      {
        data,
        shape: [points, width],
      },
      loss,
      bytes,
    ] = ["formats", "loss", "bytes"].map((what) => this.arrays[`${name}_${what}`]);
    return Array.from({ length: points }, (_, p) => ({
      codes: data.subarray(p * width, (p + 1) * width),
      loss: loss.data[p],
      nbytes: bytes.data[p],
    }));
  }

  /** The formats of a mix, but for layers that are pinned: what is best for the others at the same price. */
  mix(point, formats, pinned) {
    return formats.map((text, i) => {
      const row = this.rows.get(this.layers[i].name),
        code = point.codes[row];
      return pinned.has(i) || row === undefined ? text : code === 255 ? DENSE : this.formats[code];
    });
  }

  /** The formats of the best mix that is `within` a budget, which the first points of a front are, or where it is a
      budget of loss the last ones; the nearest to it where none is. */
  solve(front, formats, pinned, within, isLoss) {
    const points = this.fronts.get(front),
      fits = (at) => within(this.totals(this.mix(points[at], formats, pinned))) !== isLoss;
    let low = -1,
      high = points.length - 1; // the last of the first ones
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (fits(middle)) low = middle;
      else high = middle - 1;
    }
    return this.mix(
      points[Math.max(0, Math.min(points.length - 1, low + isLoss))],
      formats,
      pinned,
    );
  }

  /** What the neighbours of a format would cost this layer: the next cheaper and the next dearer of its kind in the profile. */
  alternatives(i, text) {
    const own = this.nbytes(i, text),
      { width, pattern } = format(text),
      kind = (each) => Boolean(format(each).pattern) === Boolean(pattern && !width);
    const priced = [DENSE, ...this.formats.filter(kind)]
      .filter((each) => each !== text && Number.isFinite(this.figure("predicted", i, each)))
      .map((each) => ({
        text: each,
        more: this.nbytes(i, each) - own,
        loss: this.figure("predicted", i, each),
      }))
      .sort((a, b) => a.more - b.more);
    return [
      priced.filter(({ more }) => more < 0).pop(),
      priced.find(({ more }) => more > 0),
    ].filter(Boolean);
  }
}

/** The profile of a run; null without one. */
export const profile = (run) => (run ? fetched({ run }, "workbench/profile") : null);
