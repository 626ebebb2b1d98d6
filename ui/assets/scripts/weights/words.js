/* Headlines: what the charts show on this data, as sentences by rule. */
import { lower, number, share } from "./canvas.js";
/** @import {Histograms} from "./histograms.js" */

const MIN_PROMINENCE = 0.12; // of a peak's height
const MIN_DEVIATIONS = 4; // a prominence in roots of a bin's count
const STEADY = 0.02; // relative changes below it are none
const STEADY_SPREAD = 0.005;
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

/** A share of zeros, which is "no" only where there is none. @param {number} part */
export function ofZeros(part) {
  if (!part) return "no";
  return part < 5e-4 ? "under 0.1 %" : share(part);
}

/**
 * Headline of a histogram: "Re-dense: three peaks, the middle one at zero; 14.2 % exact zeros".
 * @param {Histograms} data
 * @param {number} t
 * @param {number} s
 */
export function ofHistogram(data, t, s) {
  const { label } = data.stages[s];
  if (!data.has(t, s)) return `${label}: not recorded for ${data.tensors[t].label}`;
  const zeros = ofZeros(data.tail(t, s).share);
  return `${label}: ${shape(data.counts(t, s), data.heights(t, s))}; ${zeros} exact zeros`;
}

/** Last part of a module's name. @param {string} module */
export const shortName = (module) => module.split(".").at(-1) ?? module;

/**
 * Headline of the map: its largest value.
 * @param {Histograms} data
 * @param {string} label
 * @param {string} unit
 * @param {number[]} values by tensor
 * @param {string} [why] such a value is shown: the beginning of the sentence
 */
export function ofMap(data, label, unit, values, why = "") {
  const sizes = values.map((value) => (Number.isFinite(value) ? Math.abs(value) : -1));
  const largest = sizes.reduce((most, size) => Math.max(most, size), -1);
  if (largest < 0) return `${label}: not measured at this stage`;
  const t = sizes.indexOf(largest);
  const { block, module } = data.tensors[t];
  const verb = label.includes("|") ? "are most" : "is largest";
  const subject = why + (why ? lower(label) : label);
  return `${subject} ${verb} in block ${block}, ${shortName(module)}: ${number(values[t])}${unit}`;
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

/** @typedef {[name: string, value: string, sentence: string]} Tile */

/**
 * The four statistics of a tensor that say most.
 * @param {Histograms} data
 * @param {number} t
 * @param {number} s
 */
export function tiles(data, t, s) {
  const value = (/** @type {string} */ name, stage = s) => data.value(name, t, stage);
  const [first] = data.main;
  const base = data.stages[first].label;
  const overlap = value("mask_overlap");
  /** @type {(Tile | null)[]} */
  const candidates = [
    zerosTile(data, t, s),
    spreadTile(data, t, s),
    errorTile(data, t, s),
    overlap < 1
      ? [
          "Mask kept",
          share((2 * overlap) / (1 + overlap)),
          `${data.stages[s].label} keeps these of the weights the first pruning kept (IoU ${share(overlap)})`,
        ]
      : null,
    ["Kurtosis", number(value("kurtosis")), "A bell curve has 3"],
    ["Largest magnitude", number(value("largest")), `${base}: ${number(value("largest", first))}`],
  ];
  return candidates.filter((tile) => tile !== null).slice(0, 4);
}

/** @type {(data: Histograms, t: number, s: number) => Tile} */
function zerosTile(data, t, s) {
  const [first] = data.main;
  const bySize = data.value("by_size", t, s);
  const zeros = ofZeros(data.tail(t, s).share).replace("no", "0 %");
  const sentence =
    data.stages[s].pruned && Number.isFinite(bySize)
      ? `${share(bySize, 0)} were among the smallest dense weights`
      : `${data.stages[first].label}: ${ofZeros(data.tail(t, first).share)}`;
  return ["Exact zeros", zeros, sentence];
}

/** @type {(data: Histograms, t: number, s: number) => Tile} */
function spreadTile(data, t, s) {
  const [first] = data.main;
  const std = data.value("std", t, s);
  const wider = std / data.value("std", t, first) - 1;
  const base = lower(data.stages[first].label);
  let sentence = `${share(Math.abs(wider))} ${wider > 0 ? "wider" : "narrower"} than ${base}`;
  if (Math.abs(wider) < STEADY_SPREAD) sentence = `As wide as ${base}`;
  if (s === first) sentence = "Standard deviation";
  return ["Spread", number(std), sentence];
}

/** @type {(data: Histograms, t: number, s: number) => Tile | null} */
function errorTile(data, t, s) {
  const error = (/** @type {number} */ stage) => data.value("relative_error", t, stage);
  if (!Number.isFinite(error(s))) return null;
  const earlier = data.main.find((stage) => stage < s && Number.isFinite(error(stage)));
  const sentence =
    earlier === undefined
      ? "Of the output of the layer, on calibration text"
      : `${data.stages[earlier].label}: ${share(error(earlier), 2)}`;
  return ["Relative output error", share(error(s), 2), sentence];
}
