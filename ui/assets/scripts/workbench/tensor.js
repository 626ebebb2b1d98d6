/* The weights of one layer in any format, made in the browser as `backend/live/dense.py` makes them at once: pruned by
   magnitude in the whole layer, or in each row by Wanda's score |w| sqrt(E x^2); rounded to nearest on a symmetric grid. */
import { Histograms, fetched } from "../weights/histograms.js";
import { DENSE, format } from "./formats.js";

const BINS = 256,
  HEADROOM = 1.5,
  TAIL = 0.001; // the edges of `backend/statistics/distribution.py`
const COLUMNS = BINS + 3,
  PLACES = 2 ** 21; // of a table; of a score in a number of 53 bits
const KEPT = 12; // layers in memory, the last used ones

export class DenseTensor {
  #tables = new Map();
  #made = { key: "" };

  constructor({ head, arrays: { weights, energy } }) {
    const [rows, columns] = weights.shape;
    Object.assign(this, {
      name: head.name,
      rows,
      columns,
      w: weights.data,
      root: energy ? energy.data.map(Math.sqrt) : null,
    });
    const ordered = this.w.slice().sort(),
      at = (part) => {
        const place = part * (ordered.length - 1),
          low = Math.floor(place),
          high = Math.ceil(place);
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low);
      };
    this.edge = HEADROOM * Math.max(Math.abs(at(TAIL)), Math.abs(at(1 - TAIL))) || 1;
  }

  /** By a score: the whole percentage at which each weight is dropped first, and how many of each bin are at each; then a
      slider adds rows of one table, and looks at no weight. */
  prepare(score) {
    if (this.#tables.has(score)) return this.#tables.get(score);
    const { w, rows, columns } = this,
      root = score === "wanda" ? this.root : null,
      n = score === "wanda" ? columns : rows * columns;
    const first = new Uint8Array(w.length),
      joint = new Uint32Array(101 * COLUMNS),
      order = new Float64Array(n),
      number = new Float32Array(1),
      bits = new Uint32Array(number.buffer);
    for (let start = 0; start < w.length; start += n) {
      for (let i = 0; i < n; i++) {
        // a score and a place in one number are sorted far quicker than by a comparison; of equal ones the later is dropped
        number[0] = Math.abs(w[start + i]) * (root ? root[i] : 1);
        order[i] = bits[0] * PLACES + (n - 1 - i);
      }
      order.sort();
      for (let rank = 0, percent = 1; rank < n; rank++) {
        while (rank >= Math.floor((n * percent) / 100 + 1e-6)) percent++;
        const i = start + n - 1 - (order[rank] % PLACES);
        first[i] = percent;
        joint[percent * COLUMNS + this.#bin(w[i])]++;
      }
    }
    this.#tables.set(score, { first, joint });
    return this.#tables.get(score);
  }

  /** A bin from -edge to edge, or that of exact zeros, of what lies below, or above. */
  #bin(value) {
    if (value === 0) return BINS;
    const at = ((value + this.edge) * BINS) / (2 * this.edge);
    return at < 0 ? BINS + 1 : at > BINS ? BINS + 2 : Math.min(at | 0, BINS - 1);
  }

  /** The weights in a format. */
  values({ of, drop, width, bits, group, keep }, score) {
    const out = this.w.slice();
    if (of) this.#groups(out, keep, of, score === "wanda" ? this.root : null);
    else if (drop) {
      const { first } = this.prepare(score),
        percent = Math.round(100 * drop);
      for (let i = 0; i < out.length; i++) if (first[i] <= percent) out[i] = 0;
    }
    if (width) round(out, bits, group || this.columns);
    return out;
  }

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

  /** Counts in bins from -edge to edge, and all weights, exact zeros, those below and above. */
  histogram(text, score) {
    const key = `${text} ${score}`,
      form = format(text),
      sums = new Uint32Array(COLUMNS);
    if (this.#made.key === key) return this.#made;
    if (form.drop && !form.of && !form.width) {
      const { joint } = this.prepare(score),
        percent = Math.round(100 * form.drop);
      for (let at = COLUMNS; at < joint.length; at++)
        sums[at < (percent + 1) * COLUMNS ? BINS : at % COLUMNS] += joint[at];
    } else
      for (const value of text === DENSE ? this.w : this.values(form, score))
        sums[this.#bin(value)]++;
    return (this.#made = {
      key,
      counts: sums.subarray(0, BINS),
      tails: [this.w.length, ...sums.subarray(BINS)],
    });
  }
}

/** Rounds to nearest in place: s = max|w| / (2^(n-1) - 1/2) in each group, codes from 0 to 2^n - 1. */
export function round(out, bits, group) {
  const zero = 2 ** (bits - 1),
    top = 2 ** bits - 1;
  for (let start = 0; start < out.length; start += group) {
    let most = 0;
    for (let i = start; i < start + group; i++) most = Math.max(most, Math.abs(out[i]));
    const scale = most / (zero - 0.5) || 1;
    for (let i = start; i < start + group; i++)
      out[i] = (Math.max(0, Math.min(top, Math.round(out[i] / scale + zero))) - zero) * scale;
  }
}

const tensors = new Map(); // "MODEL NAME" -> promise

/** The dense weights of a layer. @returns {Promise<DenseTensor>} */
export function dense(model, name) {
  const key = `${model} ${name}`,
    found =
      tensors.get(key) ??
      fetched({ model, name }, "workbench/weights").then((each) => new DenseTensor(each));
  tensors.delete(key);
  tensors.set(key, found);
  found.catch(() => tensors.delete(key));
  if (tensors.size > KEPT) tensors.delete(tensors.keys().next().value);
  return found;
}

/** What the histogram of Weights draws: the dense weights, and what they are now. */
export function stages(tensor, layer, now, live) {
  const first = tensor.histogram(DENSE),
    { edge } = tensor;
  const both = [first, now],
    counts = new Uint32Array(2 * BINS),
    tails = new Float64Array(8);
  both.forEach((each, s) => {
    counts.set(each.counts, s * BINS);
    tails.set(each.tails, 4 * s);
  });
  return new Histograms({
    head: {
      run: "",
      model: "",
      kept: "live",
      bins: BINS,
      merged: 1,
      stages: [{ name: DENSE, label: "Dense", main: true, colour: "#5B6472", dash: "solid" }, live],
      statistics: [],
      unlisted: [],
      modules: [layer.module],
      tensors: [[layer.name, layer.label, layer.block, layer.module]],
    },
    arrays: {
      tails: { data: tails },
      edges: { data: new Float64Array([-edge, edge]) },
      values: { data: [] },
      counts: { data: counts },
    },
  });
}
