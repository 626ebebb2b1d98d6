/* Headlines: what the charts show on this data, as sentences by rule. */
import { lower, number, share } from "./canvas.js";
import { nameOf } from "./comparison.js";
/** @import {Effect} from "./comparison.js" */
/** @import {Place} from "./histogram.js" */
/** @import {Histograms} from "./histograms.js" */

const MIN_PROMINENCE = 0.12; // of a peak's height
const MIN_DEVIATIONS = 4; // a prominence in roots of a bin's count
const STEADY = 0.02; // relative changes below it are none
const MAX_FIGURES = 5;
/** Statistic, label, and unit. @type {[name: string, label: string, unit: string][]} */
const FIGURES = [
  ["relative_error", "Output error", "\u00a0%"],
  ["zero_share", "Exact zeros", "\u00a0%"],
  ["std", "Spread", ""],
  ["moved", "Change from dense", "\u00a0%"],
  ["kurtosis", "Kurtosis", ""],
  ["largest", "Largest", ""],
];
const NEAR_CENTER = 0.06; // of the axis
const SHAPE_BINS = 128;
const COUNTS = ["no peak", "one peak", "two peaks", "three peaks"];

/**
 * Each value averaged with its neighbors.
 * @param {number[]} values
 */
export const smoothed = (values) =>
  values.map(
    (value, i) => 0.25 * (values[i - 1] ?? value) + 0.5 * value + 0.25 * (values[i + 1] ?? value),
  );

/** Smoothed counts in at most 128 bins. @param {ArrayLike<number>} counts */
function heightsOf(counts) {
  const bins = Math.min(SHAPE_BINS, counts.length);
  const merged = counts.length / bins;
  const sums = Array.from({ length: bins }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < merged; j++) sum += counts[i * merged + j];
    return sum;
  });
  return smoothed(sums);
}

/**
 * Lowest height on the way from a peak to a higher one; 0 where there is none.
 * @param {number[]} heights
 * @param {number} peak
 * @param {1 | -1} step
 */
function saddle(heights, peak, step) {
  let low = heights[peak];
  for (let i = peak; i >= 0 && i < heights.length; i += step) {
    if (heights[i] > heights[peak]) return low;
    low = Math.min(low, heights[i]);
  }
  return 0;
}

/** A peak that stands out from chance and from a plateau. @type {(heights: number[], i: number) => boolean} */
function isPeak(heights, i) {
  const height = heights[i];
  if (!height || height < (heights[i - 1] ?? 0) || height < (heights[i + 1] ?? 0)) return false;
  const prominence = height - Math.max(saddle(heights, i, -1), saddle(heights, i, 1));
  return prominence > Math.max(MIN_PROMINENCE * height, MIN_DEVIATIONS * Math.sqrt(height));
}

/**
 * The shape of a histogram: its peaks, and the dip between two of them in the bins that are drawn.
 * @param {ArrayLike<number>} counts
 * @param {ArrayLike<number>} [drawn]
 */
export function shape(counts, drawn = counts) {
  const heights = heightsOf(counts);
  const peaks = [...heights.keys()].filter((i) => isPeak(heights, i));
  const words = COUNTS[peaks.length] ?? `${peaks.length} peaks`;
  const center = (heights.length - 1) / 2;
  if (peaks.length === 3 && Math.abs(peaks[1] - center) < NEAR_CENTER * heights.length)
    return `${words}, the middle one at zero`;
  if (peaks.length !== 2) return words;
  const bins = Array.from(drawn);
  const [from, to] = peaks.map((i) => Math.round(((i + 0.5) * bins.length) / heights.length));
  const low = Math.min(...bins.slice(from, to));
  const middle = bins.indexOf(low, from);
  const lowerPeak = Math.min(Math.max(...bins.slice(0, middle)), Math.max(...bins.slice(middle)));
  return low
    ? `${words} with a dip to ${share(low / lowerPeak, 0)} of their height`
    : `${words} with a gap between them`;
}

/**
 * Headline of a histogram: "Re-dense: three peaks, the middle one at zero".
 * @param {Histograms} data
 * @param {number} t
 * @param {number} s
 */
export function ofHistogram(data, t, s) {
  const { label } = data.stages[s];
  if (!data.has(t, s)) return `${label}: not recorded for ${data.tensors[t].label}`;
  return `${label}: ${shape(data.counts(t, s), data.heights(t, s))}`;
}

/** Last part of a module's name. @param {string} module */
export const shortName = (module) => module.split(".").at(-1) ?? module;

/**
 * Headline of the map: its largest value, or in how many layers a difference is below zero.
 * @param {Histograms} data
 * @param {string} label
 * @param {string} unit
 * @param {number[]} values by tensor
 * @param {string} [rival] what they are compared with
 */
export function ofMap(data, label, unit, values, rival = "") {
  const measured = [...values.keys()].filter((t) => Number.isFinite(values[t]));
  if (!measured.length) return `${label}: not measured at this stage`;
  const t = measured.reduce((a, b) => (Math.abs(values[b]) > Math.abs(values[a]) ? b : a));
  const { block, module } = data.tensors[t];
  const where = `block ${block}, ${shortName(module)}: ${number(values[t])}${unit}`;
  if (!values[t]) return rival ? `${label}: as in ${rival}` : `${label}: 0${unit} in all layers`;
  if (!rival) return `${label} ${label.includes("|") ? "are most" : "is largest"} in ${where}`;
  const less = measured.filter((each) => values[each] < 0).length;
  return `${label}: below ${rival} in ${less} of ${measured.length} layers; most in ${where}`;
}

/**
 * Headline of the ridges: in which block a module is widest.
 * @param {string} module
 * @param {[block: number, width: number][]} widths magnitudes below which 99 % of what is drawn lie
 */
export function ofDepth(module, widths) {
  if (widths.length < 2) return `${module}: one block`;
  const ordered = [...widths].sort(([, a], [, b]) => a - b);
  const [thinnest, thinWidth] = ordered[0];
  const [widest, width] = ordered[ordered.length - 1];
  if (width - thinWidth <= STEADY * width)
    return `99 % of ${module} lie within ±${number(width, 2)} in all blocks`;
  return `${module} is widest in block ${widest}: 99 % lie within ±${number(width, 2)}; narrowest in block ${thinnest}, ±${number(thinWidth, 2)}`;
}

/** @typedef {[name: string, value: string, reference: string]} Figure */

/** @type {(before: number, after: number) => string} */
function verbOf(before, after) {
  if (Math.abs(after / before - 1) <= STEADY) return "keeps";
  return after < before ? "cuts" : "raises";
}

/**
 * Headline of the page: "Block 15, up_proj: SDS cuts the output error 7.48 → 4.06 %; adjustment alone reaches 4.33 %".
 * @param {Effect} effect
 */
export function ofEffect({ before, after, rival }) {
  const { data, t, s } = after;
  const { label } = data.tensors[t];
  const error = (/** @type {Place} */ place) =>
    place.data.shown("relative_error", place.t, place.s);
  const name = nameOf(after, data.run);
  const [from, to] = [error(before), error(after)];
  if (!Number.isFinite(to) || before.data.stages[before.s].name === after.data.stages[s].name)
    return data.has(t, s)
      ? `${label}: ${lower(data.stages[s].short)} weights have ${shape(data.counts(t, s), data.heights(t, s))}`
      : `${label} is not recorded at stage ${data.stages[s].label}`;
  if (!(from > 0)) return `${label}: ${name} leaves an output error of ${number(to)} %`;
  const reached = rival ? error(rival) : NaN;
  const other = Number.isFinite(reached)
    ? `; ${lower(nameOf(/** @type {Place} */ (rival), data.run))} reaches ${number(reached)} %`
    : "";
  return `${label}: ${name} ${verbOf(from, to)} the output error ${number(from)} → ${number(to)} %${other}`;
}

/**
 * The same in all layers: "Better than first pruning in 208 of 210 layers, than adjustment alone in 190".
 * @param {Effect} effect
 * @param {(place: Place, t: number) => Place | null} at the same place of another tensor
 */
export function ofAllLayers({ before, after, rival }, at) {
  const { data } = after;
  const error = (/** @type {Place | null} */ place) =>
    place ? place.data.value("relative_error", place.t, place.s) : NaN;
  const better = (/** @type {Place} */ other) => {
    const pairs = data.tensors
      .map((_, t) => [error(at(after, t)), error(at(other, t))])
      .filter((pair) => pair.every(Number.isFinite));
    return { of: pairs.length, less: pairs.filter(([own, theirs]) => own < theirs).length };
  };
  const { of, less } = better(before);
  if (!of || before.data.stages[before.s].name === "dense") return `Model: ${data.model}.`;
  const named = lower(nameOf(before, data.run));
  const many = (/** @type {number} */ n) => (n === of ? `all ${of}` : `${n} of ${of}`);
  const start = `${data.model}: lower error than ${named} in ${many(less)} layers`;
  if (!rival) return `${start}.`;
  return `${start}, than ${lower(nameOf(rival, data.run))} in ${many(better(rival).less)}.`;
}

/**
 * The statistics of a tensor that say most, beside those of the reference.
 * @param {Place} place
 * @param {Place} reference
 * @returns {Figure[]}
 */
export function figures(place, reference) {
  const { data, t, s } = place;
  const isSame = reference.data === data && reference.s === s;
  const named = lower(nameOf(reference, data.run));
  const perplexity = (/** @type {Place} */ at) => at.data.stages[at.s].perplexity;
  const whole = perplexity(place)
    ? [
        /** @type {Figure} */ ([
          "Model perplexity",
          number(perplexity(place), 4),
          isSame || !perplexity(reference) ? "" : `${named} ${number(perplexity(reference), 4)}`,
        ]),
      ]
    : [];
  const own = FIGURES.flatMap(([name, label, unit]) => {
    const text = (/** @type {Place} */ at) => number(at.data.shown(name, at.t, at.s)) + unit;
    if (!Number.isFinite(data.value(name, t, s))) return [];
    const other = reference.data.value(name, reference.t, reference.s);
    const words = isSame || !Number.isFinite(other) ? "" : `${named} ${text(reference)}`;
    return [/** @type {Figure} */ ([label, text(place), words])];
  });
  return [...whole, ...own].slice(0, MAX_FIGURES);
}
