/* Reference of all comparisons on the page: a stage of the run, or another run of the same model. */
import { lower, number } from "./canvas.js";
import { rebinned } from "./histogram.js";
/** @import {Difference, Place} from "./histogram.js" */
/** @import {Histograms} from "./histograms.js" */

/** @typedef {{before: Place, after: Place, rival: Place | null, note: string}} Effect What a method did, and what less
    does; `note`: why perplexity says otherwise. */

const MIN_GROWTH = 0.01; // smallest reported change of the mean magnitude

/** Name of a place: its stage, and its run unless it is `run`. @type {(place: Place, run: string) => string} */
export const nameOf = ({ data, s }, run) =>
  data.stages[s].short + (data.run === run ? "" : ` of ${data.run}`);

export class Comparison {
  /** @param {Histograms} data @param {Histograms | null} other @param {number} chosen the stage that was chosen; -1 for
      the default */
  constructor(data, other, chosen) {
    this.data = data;
    this.other = other;
    this.chosen = chosen;
  }

  /** The same in the other run, where it is recorded; what this run kept is compared with what the other one kept.
      @type {(t: number, s: number) => Place | null} */
  twin(t, s) {
    const { data, other } = this;
    if (!other) return null;
    const { name } = data.stages[s];
    const isKept = name === data.kept && other.kept !== data.stages[0].name;
    const place = {
      data: other,
      t: other.tensor(data.tensors[t].name),
      s: other.stage(isKept ? other.kept : name),
    };
    return place.t >= 0 && place.s >= 0 ? place : null;
  }

  /** Reference of a tensor at a stage. @type {(t: number, s: number) => Place} */
  reference(t, s) {
    const { data, chosen } = this;
    return this.twin(t, s) ?? { data, t, s: chosen >= 0 ? chosen : data.reference(s) };
  }

  /** Effect of the run's method with its rival, or of the selected comparison. @type {(t: number, s: number) => Effect} */
  effect(t, s) {
    const { data, other, chosen } = this;
    const [before, after, rival] = [data.effect.before, data.effect.after, data.effect.rival].map(
      (name) => data.stage(name),
    );
    if (other || chosen >= 0 || after < 0)
      return { before: this.reference(t, s), after: { data, t, s }, rival: null, note: "" };
    return {
      before: { data, t, s: before >= 0 ? before : data.main[0] },
      after: { data, t, s: after },
      rival: rival >= 0 ? { data, t, s: rival } : null,
      note: data.effect.note,
    };
  }

  /** The histogram after the effect less that before. @type {(t: number, s: number) => Difference | null} */
  difference(t, s) {
    const { before, after } = this.effect(t, s);
    const { data } = after;
    const isSame = before.data === data && before.s === after.s;
    if (isSame || !data.has(t, after.s) || !before.data.has(before.t, before.s)) return null;
    const bins = data.fewer(t);
    const [low, high] = data.range(t);
    const from = rebinned(before.data, before.t, before.s, [low, high], bins);
    const heights = data.heights(t, after.s, bins).map((height, i) => height - from[i]);
    const moved = heights.reduce((sum, height) => sum + Math.max(0, height), 0);
    const size = (/** @type {Float64Array} */ parts) =>
      parts.reduce(
        (sum, part, i) => sum + part * Math.abs(low + ((i + 0.5) * (high - low)) / bins),
        0,
      );
    const grown = size(heights) / (size(from) || 1);
    let way = "change place";
    if (Math.abs(grown) > MIN_GROWTH) way = grown > 0 ? "move outwards" : "move inwards";
    const { short, color } = data.stages[after.s];
    const label = `${short} − ${lower(nameOf(before, data.run))}: ${number(moved, 2)} % of the weights ${way}`;
    return { label, color, heights };
  }
}
