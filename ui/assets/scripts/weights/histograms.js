/* What a run has recorded, as `ui/widgets/packed.py` packs it. */

/** @typedef {{name: string, label: string, main: boolean, pruned: boolean, colour: string, dash: string, perplexity: number | null}} Stage */
/** @typedef {{name: string, label: string, question: string, percent: boolean}} Statistic */
/** @typedef {{name: string, label: string, block: number, module: string}} Tensor */

const TYPES = {
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
  f4: Float32Array,
  f8: Float64Array,
};
const MIN_BINS = 64,
  FULL = 100; // weights a bin should hold on average

export class Histograms {
  constructor({ head, arrays: { tails, edges, values, counts } }, etag = "") {
    Object.assign(this, {
      ...head,
      etag,
      tails: tails.data,
      edges: edges.data,
      values: values.data,
      numbers: counts.data,
    });
    /** @type {Stage[]} */ this.stages = head.stages;
    /** @type {Statistic[]} */ this.statistics = head.statistics;
    /** @type {Tensor[]} */
    this.tensors = head.tensors.map(([name, label, block, module]) => ({
      name,
      label,
      block,
      module,
    }));
    this.blocks = [...new Set(this.tensors.map((each) => each.block))].sort((a, b) => a - b);
    this.places = new Map(
      [...this.statistics.map((each) => each.name), ...head.unlisted].map((name, k) => [name, k]),
    );
    this.percent = new Set(this.statistics.filter((each) => each.percent).map((each) => each.name));
    this.cells = new Map(this.tensors.map((each, t) => [`${each.block} ${each.module}`, t]));
    this.main = this.stages.flatMap((each, s) => (each.main ? [s] : []));
    if (this.main.length < 2) this.main = this.stages.map((_, s) => s);
  }

  tensor(name) {
    return this.tensors.findIndex((each) => each.name === name);
  }
  stage(name) {
    return this.stages.findIndex((each) => each.name === name);
  }
  at(block, module) {
    return this.cells.get(`${block} ${module}`) ?? -1;
  }
  has(t, s) {
    return t >= 0 && s >= 0 && this.tails[4 * (t * this.stages.length + s)] > 0;
  }

  /** All weights, exact zeros, those below and above the bins. */
  tail(t, s) {
    const [n, zeros, below, above] = this.tails.subarray(4 * (t * this.stages.length + s));
    return { n, zeros, below, above, share: n ? zeros / n : 0 };
  }

  range(t) {
    return [this.edges[2 * t], this.edges[2 * t + 1]];
  }

  counts(t, s) {
    const at = (t * this.stages.length + s) * this.bins;
    return this.numbers.subarray(at, at + this.bins);
  }

  /** A stored statistic, NaN where not measured; `shown` in its unit, such as %. */
  value(name, t, s) {
    const place = this.places.get(name) ?? -1;
    return place < 0
      ? NaN
      : this.values[(place * this.tensors.length + t) * this.stages.length + s];
  }
  /** The magnitude threshold of a pruned stage, else NaN: zeros that rounding left were not chosen by size. */
  cutoff(t, s) {
    return this.stages[s].pruned ? this.value("cutoff", t, s) : NaN;
  }
  shown(name, t, s) {
    return this.value(name, t, s) * (this.percent.has(name) ? 100 : 1);
  }

  /** Share of all weights in each bin, %, in fewer bins where they hold too few weights to have a
      shape, or in so many. */
  heights(t, s, bins = this.fewer(t)) {
    const counts = this.counts(t, s),
      by = this.bins / bins,
      n = this.tail(t, s).n || 1;
    const heights = new Float64Array(bins);
    for (let i = 0; i < counts.length; i++) heights[(i / by) | 0] += (100 * counts[i]) / n;
    return heights;
  }
  fewer(t) {
    let bins = this.bins;
    const n = Math.min(...this.stages.map((_, s) => this.tail(t, s).n).filter(Boolean));
    while (bins > MIN_BINS && n < FULL * bins) bins /= 2;
    return bins;
  }

  /** Share of all weights with a magnitude from `low` to `high`, taken to lie evenly in their bins;
      exact zeros where `low` is 0. */
  within(t, s, [low, high]) {
    const [from, to] = this.range(t),
      counts = this.counts(t, s),
      width = (to - from) / this.bins,
      tail = this.tail(t, s);
    let sum = low === 0 ? tail.zeros : 0;
    for (let i = 0; i < counts.length; i++) {
      if (!counts[i]) continue;
      const left = from + i * width,
        right = left + width;
      const part =
        Math.max(0, Math.min(right, high) - Math.max(left, low)) +
        Math.max(0, Math.min(right, -low) - Math.max(left, -high));
      sum += (counts[i] * part) / width;
    }
    return tail.n ? sum / tail.n : NaN;
  }

  /** Half of an axis that shows the middle 99.8 % of the weights that are not zero, or another part. */
  reach(t, stages, part = 0.998) {
    const [from, to] = this.range(t);
    let far = 0;
    for (const s of stages) {
      const counts = this.counts(t, s),
        tail = this.tail(t, s),
        width = (to - from) / this.bins;
      const beyond = ((1 - part) / 2) * (tail.n - tail.zeros);
      let left = tail.below,
        right = tail.above,
        i = 0,
        j = counts.length - 1;
      while (i < j && (left += counts[i]) < beyond) i++;
      while (j > i && (right += counts[j]) < beyond) j--;
      far = Math.max(far, Math.abs(from + i * width), Math.abs(from + (j + 1) * width));
    }
    return Math.min(far, Math.max(Math.abs(from), Math.abs(to))) || 1;
  }
}

/** A binary as its header and its arrays by name, each with its shape. Throws an Error whose `html` says
    why there is none. The browser keeps it and asks only whether it is still the same. */
export async function fetched(query, path = "weights") {
  const answer = await fetch(`slimscope/${path}?${new URLSearchParams(query)}`, {
    cache: "no-cache",
  });
  if (!answer.ok) {
    const { what, why, html } = await answer
      .json()
      .catch(() => ({ what: `The server answered ${answer.status}.` }));
    throw Object.assign(new Error([what, why].filter(Boolean).join(" ")), { html });
  }
  const buffer = await answer.arrayBuffer(),
    length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = Object.entries(head.arrays).map(([name, [type, offset, shape]]) => [
    name,
    {
      shape,
      data: new TYPES[type](
        buffer,
        4 + length + offset,
        shape.reduce((size, n) => size * n, 1),
      ),
    },
  ]);
  return { head, arrays: Object.fromEntries(arrays), etag: answer.headers.get("etag") ?? "" };
}

/** The histograms of a run, "" for the newest. */
export async function load(run) {
  const found = await fetched(run ? { run } : {});
  return new Histograms(found, found.etag);
}

/** Profiles of a tensor, "BLOCK/STAGE/NAME" -> {shape, data}, or single weights by stage. */
export const profiles = (run, tensor, query) => fetched({ run, tensor, ...query });
