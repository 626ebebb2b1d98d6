/* The weights of one layer in any format, made in the browser as `backend/live/dense.py` makes them at once: pruned by
   magnitude in the whole layer, or in each row by Wanda's score |w| sqrt(E x^2); rounded to nearest on a symmetric grid. */
import { Histograms, fetched } from "../weights/histograms.js";
import { DENSE, format } from "./formats.js";

const BINS = 256, HEADROOM = 1.5, TAIL = 0.001; // the edges of `backend/statistics/snapshots.py`
const KEPT = 12; // layers in memory, the last used ones

export class DenseTensor {
  #ranks = new Map(); #made = { key: "" };

  constructor({ head, arrays: { weights, energy } }) {
    const [rows, columns] = weights.shape;
    Object.assign(this, { name: head.name, rows, columns, share: rows / head.rows, w: weights.data, energy: energy?.data ?? null });
    const ordered = this.w.slice().sort(), at = (part) => ordered[Math.round(part * (ordered.length - 1))];
    this.edge = HEADROOM * Math.max(Math.abs(at(TAIL)), Math.abs(at(1 - TAIL))) || 1;
  }

  /** How many weights of each row rank below each, or of all where nothing is known of the inputs. */
  #ranked(score) {
    const { w, rows, columns, energy } = this, byRow = score === "wanda";
    if (this.#ranks.has(byRow)) return this.#ranks.get(byRow);
    const n = byRow ? columns : rows * columns, ranks = new Float32Array(w.length), order = new Float64Array(n);
    const root = energy && byRow ? energy.map(Math.sqrt) : null;
    for (let start = 0; start < w.length; start += n) {
      // a score of 32 bits and a place in one number, sorted as numbers: far quicker than with a comparison
      const bits = new Float32Array(1), whole = new Uint32Array(bits.buffer);
      for (let i = 0; i < n; i++) {
        bits[0] = Math.abs(w[start + i]) * (root ? root[i] : 1);
        order[i] = whole[0] * 2 ** 21 + (n - 1 - i);
      }
      order.sort();
      for (let rank = 0; rank < n; rank++) ranks[start + n - 1 - (order[rank] % 2 ** 21)] = rank / n;
    }
    this.#ranks.set(byRow, ranks);
    return ranks;
  }

  /** The weights in a format, in one array that the next call overwrites. */
  values(text, score) {
    const { w, rows, columns } = this, form = format(text), out = (this.out ??= new Float32Array(w.length));
    out.set(w);
    if (form.of) this.#groups(out, form, score);
    else if (form.drop) {
      const ranks = this.#ranked(score), n = score === "wanda" ? columns : rows * columns,
        least = Math.floor(n * form.drop + 1e-6) / n - 0.5 / n;
      for (let i = 0; i < w.length; i++) if (ranks[i] < least) out[i] = 0;
    }
    if (form.width) round(out, form.bits, form.group || columns);
    return out;
  }

  #groups(out, { keep, of }, score) {
    const { columns, energy } = this, scores = new Float32Array(of);
    for (let start = 0; start < out.length; start += of) {
      for (let i = 0; i < of; i++) scores[i] = Math.abs(out[start + i]) * (energy && score === "wanda" ? Math.sqrt(energy[(start + i) % columns]) : 1);
      for (let i = 0; i < of; i++) {
        let beaten = 0;
        for (let j = 0; j < of; j++) if (scores[j] > scores[i] || (scores[j] === scores[i] && j < i)) beaten++;
        if (beaten >= keep) out[start + i] = 0;
      }
    }
  }

  /** Counts in bins from -edge to edge, and what is in none. */
  histogram(text, score) {
    const key = `${text} ${score}`;
    if (this.#made.key === key) return this.#made;
    const values = text === DENSE ? this.w : this.values(text, score), counts = new Uint32Array(BINS), by = BINS / (2 * this.edge);
    let zeros = 0, below = 0, above = 0;
    for (let i = 0; i < values.length; i++) {
      const at = (values[i] + this.edge) * by;
      if (values[i] === 0) zeros++;
      else if (at < 0) below++;
      else if (at > BINS) above++;
      else counts[Math.min(at | 0, BINS - 1)]++;
    }
    return (this.#made = { key, counts, tails: [values.length, zeros, below, above] });
  }
}

/** Rounds to nearest in place: s = max|w| / (2^(n-1) - 1/2) in each group, codes from 0 to 2^n - 1. */
export function round(out, bits, group) {
  const zero = 2 ** (bits - 1), top = 2 ** bits - 1;
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
  const key = `${model} ${name}`, found = tensors.get(key) ?? fetched({ model, name }, "workbench/weights").then((each) => new DenseTensor(each));
  tensors.delete(key);
  tensors.set(key, found);
  found.catch(() => tensors.delete(key));
  if (tensors.size > KEPT) tensors.delete(tensors.keys().next().value);
  return found;
}

/** What the histogram of Weights draws: the dense weights, and what they are now. */
export function stages(tensor, layer, now, live) {
  const first = tensor.histogram(DENSE), { edge } = tensor;
  const both = [first, now], counts = new Uint32Array(2 * BINS), tails = new Float64Array(8);
  both.forEach((each, s) => { counts.set(each.counts, s * BINS); tails.set(each.tails, 4 * s); });
  return new Histograms({
    head: { run: "", model: "", kept: "live", bins: BINS, merged: 1, stages: [{ name: DENSE, label: "Dense", main: true, colour: "#5B6472", dash: "solid" }, live],
      statistics: [], unlisted: [], modules: [layer.module], tensors: [[layer.name, layer.label, layer.block, layer.module]] },
    arrays: { tails: { data: tails }, edges: { data: new Float64Array([-edge, edge]) }, values: { data: [] }, counts: { data: counts } },
  });
}
