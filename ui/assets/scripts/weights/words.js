/* Findings: what the charts show on this data, as sentences by rule. */
import { lower, number, share } from "./canvas.js";

const PROMINENCE = 0.12,
  SURE = 4; // of a peak's height; times the root of a bin's count
const STEADY = 0.02; // a relative change below that is none
const NEAR_CENTRE = 0.06; // of the axis

/** Counts in at most 128 bins, each averaged with its neighbours. */
function smooth(counts) {
  const bins = Math.min(128, counts.length),
    by = counts.length / bins;
  const wide = Array.from({ length: bins }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < by; j++) sum += counts[i * by + j];
    return sum;
  });
  return wide.map(
    (value, i) => 0.25 * (wide[i - 1] ?? value) + 0.5 * value + 0.25 * (wide[i + 1] ?? value),
  );
}

/** Places of the peaks of a histogram that stand out from chance and from a plateau, on the smoothed heights. */
export function peaks(counts) {
  const heights = smooth(counts);
  const saddle = (top, step) => {
    let low = heights[top];
    for (let i = top; i >= 0 && i < heights.length; i += step) {
      if (heights[i] > heights[top]) return low;
      low = Math.min(low, heights[i]);
    }
    return 0;
  };
  const places = heights.flatMap((height, i) => {
    if (!height || height < (heights[i - 1] ?? 0) || height < (heights[i + 1] ?? 0)) return [];
    const prominence = height - Math.max(saddle(i, -1), saddle(i, 1));
    return prominence > Math.max(PROMINENCE * height, SURE * Math.sqrt(height)) ? [i] : [];
  });
  return { heights, places };
}

/** The shape of a histogram: its peaks, and the dip between them in the bins that are `drawn`. */
export function shape(counts, drawn = counts) {
  const { heights, places } = peaks(counts),
    names = ["no peak", "one peak", "two peaks", "three peaks"];
  let words = names[places.length] ?? `${places.length} peaks`;
  if (places.length === 2) {
    const [from, to] = places.map((place) =>
        Math.round(((place + 0.5) * drawn.length) / heights.length),
      ),
      low = Math.min(...drawn.slice(from, to)),
      middle = drawn.indexOf(low, from),
      dip = low / Math.min(Math.max(...drawn.slice(0, middle)), Math.max(...drawn.slice(middle)));
    words += dip ? ` with a dip to ${share(dip, 0)} of their height` : " with a gap between them";
  }
  if (
    places.length === 3 &&
    Math.abs(places[1] - (heights.length - 1) / 2) < NEAR_CENTRE * heights.length
  )
    words += ", the middle one at zero";
  return words;
}

/** A share of zeros, which is "no" only where there is none. */
export const ofZeros = (part) => (part ? (part < 5e-4 ? "under 0.1 %" : share(part)) : "no");

/** Of one tensor at a stage: "Re-dense: three peaks, the middle one at zero; 14.2 % exact zeros". */
export function ofHistogram(data, t, s) {
  const { label } = data.stages[s];
  if (!data.has(t, s)) return `${label}: not recorded for ${data.tensors[t].label}`;
  return `${label}: ${shape(data.counts(t, s), data.heights(t, s))}; ${ofZeros(data.tail(t, s).share)} exact zeros`;
}

/** Of values by cell, [tensor index, value]: where it is largest; after why it is that figure. */
export function ofMap(data, label, unit, cells, why = "") {
  const known = cells.filter(([, value]) => Number.isFinite(value));
  if (!known.length) return `${label}: not measured at this stage`;
  const [t, value] = known.reduce((best, each) =>
    Math.abs(each[1]) > Math.abs(best[1]) ? each : best,
  );
  const { block, module } = data.tensors[t];
  return `${why}${why ? lower(label) : label} ${label.includes("|") ? "are most" : "is largest"} in block ${block}, ${module.split(".").pop()}: ${number(value)}${unit}`;
}

/** Of the widths of one module by block, [block, magnitude that 99 % of what is drawn lie below]. */
export function ofDepth(module, widths) {
  if (widths.length < 2) return `${module}: one block`;
  const [low, high] = [Math.min, Math.max].map((pick) => {
    const v = pick(...widths.map((each) => each[1]));
    return widths.find((each) => each[1] === v);
  });
  if (high[1] - low[1] <= STEADY * high[1])
    return `99 % of ${module} lie within ±${number(high[1], 2)} in all blocks`;
  return `${module} is widest in block ${high[0]}: 99 % lie within ±${number(high[1], 2)}; narrowest in block ${low[0]}, ±${number(low[1], 2)}`;
}

/** The four statistics that say most, as [name, value, sentence]. */
export function tiles(data, t, s) {
  const value = (name, stage = s) => data.value(name, t, stage);
  const [first] = data.main,
    base = data.stages[first].label,
    own = data.stages[s].label,
    bySize = value("by_size"),
    overlap = value("mask_overlap");
  const earlier =
    data.main.find((each) => each < s && Number.isFinite(value("relative_error", each))) ?? -1;
  const wider = value("std") / value("std", first) - 1,
    kept = (2 * overlap) / (1 + overlap);
  const rest = [
    ["Kurtosis", number(value("kurtosis")), "A bell curve has 3"],
    ["Largest magnitude", number(value("largest")), `${base}: ${number(value("largest", first))}`],
  ];
  const found = [
    [
      "Exact zeros",
      ofZeros(data.tail(t, s).share).replace("no", "0 %"),
      data.stages[s].pruned && Number.isFinite(bySize)
        ? `${share(bySize, 0)} were among the smallest dense weights`
        : `${base}: ${ofZeros(data.tail(t, first).share)}`,
    ],
    [
      "Spread",
      number(value("std")),
      s === first
        ? "Standard deviation"
        : Math.abs(wider) < 0.005
          ? `As wide as ${lower(base)}`
          : `${share(Math.abs(wider))} ${wider > 0 ? "wider" : "narrower"} than ${lower(base)}`,
    ],
  ];
  if (Number.isFinite(value("relative_error"))) {
    const before =
      earlier >= 0
        ? `${data.stages[earlier].label}: ${share(value("relative_error", earlier), 2)}`
        : "Of the output of the layer, on calibration text";
    found.push(["Relative output error", share(value("relative_error"), 2), before]);
  }
  if (overlap < 1)
    found.push([
      "Mask kept",
      share(kept),
      `${own} keeps these of the weights the first pruning kept (IoU ${share(overlap)})`,
    ]);
  return [...found, ...rest].slice(0, 4);
}
