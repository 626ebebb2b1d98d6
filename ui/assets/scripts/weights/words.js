/* Headlines: the findings of the charts, as sentences computed by rules. */
import { lower, number } from "./canvas.js";
import { nameOf } from "./comparison.js";
import { middleWords } from "./histogram.js";
/** @import {Effect} from "./comparison.js" */
/** @import {Place} from "./histogram.js" */
/** @import {Histograms} from "./histograms.js" */

const STEADY = 0.02; // smaller relative changes are ignored
const MAX_FIGURES = 4;
/** Statistic, label, unit. @type {[name: string, label: string, unit: string][]} */
const FIGURES = [
  ["perplexity", "Model perplexity", ""],
  ["bits", "Bits of this layer", ""],
  ["relative_error", "Output error", "\u00a0%"],
  ["zero_share", "Exact zeros", "\u00a0%"],
  ["std", "Spread", ""],
  ["moved", "Change from dense", "\u00a0%"],
  ["kurtosis", "Kurtosis", ""],
  ["largest", "Largest", ""],
];

/** Each value averaged with its neighbors. @param {number[]} values */
export const smoothed = (values) =>
  values.map(
    (value, i) => 0.25 * (values[i - 1] ?? value) + 0.5 * value + 0.25 * (values[i + 1] ?? value),
  );

/** Headline of a histogram: "Re-dense: grown back small: 49 %, spread 0.196 → 0.181". @type {(place: Place) => string} */
export function ofHistogram({ data, t, s }) {
  const { label } = data.stages[s];
  if (!data.has(t, s)) return `${label}: not recorded for ${data.tensors[t].label}`;
  const [first, now] = [data.main[0], s].map((stage) => number(data.value("std", t, stage)));
  const spread = s === data.main[0] ? now : `${first} → ${now}`;
  return `${label}: ${[middleWords(data, t, s), `spread ${spread}`].filter(Boolean).join(", ")}`;
}

/** Last part of a module's name, with the number of an expert. @param {string} module */
export const shortName = (module) => module.match(/(\d+\.)?[^.]+$/)?.[0] ?? module;

/** Headline of the map: its largest value, or in how many layers a difference is below zero. @param {Histograms} data
    @param {string} label @param {string} unit @param {number[]} values by tensor @param {string} [rival] what they are
    compared with */
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

/** @typedef {[name: string, value: string, reference: string]} Figure */

/** @type {(one: Place, other: Place) => boolean} */
const isSame = (one, other) => one.data === other.data && one.s === other.s;

/** @type {(before: number, after: number) => string} */
function verbOf(before, after) {
  if (Math.abs(after / before - 1) <= STEADY) return "keeps";
  return after < before ? "cuts" : "raises";
}

/** Headline of the page: "Block 15, up_proj: SDS cuts the output error 7.48 → 4.06 %; adjustment alone reaches 4.33 %".
    A trained stage is judged by the model: its layers lose accuracy. @param {Effect} effect */
export function ofEffect({ before, after, rival }) {
  const { data, t, s } = after;
  const { label } = data.tensors[t];
  const error = (/** @type {Place} */ place) =>
    place.data.shown("relative_error", place.t, place.s);
  const name = nameOf(after, data.run);
  const [from, to] = [error(before), error(after)];
  if (!data.has(t, s))
    return `${label} is not recorded at stage ${data.stages[s].label}: choose a colored cell of the map`;
  const [was, is] = [before, after].map((place) => place.data.stages[place.s].perplexity);
  const isModel = Number.isNaN(to) || (data.stages[s].trained && before.data === data);
  if (isModel && was && is && !isSame(before, after)) {
    const layer = to > 0 ? `; ${lower(label)}: output error ${number(from)} → ${number(to)} %` : "";
    const best = rival && rival.data.stages[rival.s].perplexity;
    const beside = best ? `; ${lower(nameOf(rival, data.run))} reaches ${number(best)}` : "";
    return `${name} ${verbOf(was, is)} the model's perplexity ${number(was)} → ${number(is)}${beside}${layer}`;
  }
  if (!(to > 0))
    return `${label}: ${lower(data.stages[s].short)} weights spread by ${number(data.value("std", t, s))}`;
  if (!(from > 0) || isSame(before, after))
    return `${label}: ${name} leaves an output error of ${number(to)} %`;
  if (before.data !== data || before.s !== data.stage(data.effect.before))
    return `${label}: ${name} has an output error of ${number(to)} %, ${lower(nameOf(before, data.run))} ${number(from)} %`;
  const reached = rival ? error(rival) : NaN;
  const other = Number.isFinite(reached)
    ? `; ${lower(nameOf(/** @type {Place} */ (rival), data.run))} reaches ${number(reached)} %`
    : "";
  return `${label}: ${name} ${verbOf(from, to)} the output error ${number(from)} → ${number(to)} %${other}`;
}

/** The same in all layers: "output error below first pruning in 208 of 210 layers, below adjustment alone in 190 of
    210". @param {Effect} effect @param {(place: Place, t: number) => Place | null} at the same place of another tensor */
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
  if (!of || isSame(before, after) || before.data.stages[before.s].name === "dense") return "";
  const many = (/** @type {number} */ n) => (n === of ? `all ${of}` : `${n} of ${of}`);
  const named = (/** @type {Place} */ place) => lower(nameOf(place, data.run));
  const start = `output error below ${named(before)} in ${many(less)} layers`;
  return rival ? `${start}, below ${named(rival)} in ${many(better(rival).less)}` : start;
}

/** The statistics of a tensor that say most, beside those of the reference; the model's perplexity also beside that of
    the rival and of the dense model. @param {Place} place @param {Place} reference @param {Place | null} rival
    @returns {Figure[]} */
export function figures(place, reference, rival) {
  const { data } = place;
  const dense = { ...place, s: data.main[0] };
  return FIGURES.flatMap(([name, label, unit]) => {
    const isModel = name === "perplexity";
    const value = (/** @type {Place} */ at) =>
      isModel ? (at.data.stages[at.s].perplexity ?? NaN) : at.data.shown(name, at.t, at.s);
    const text = (/** @type {Place} */ at) =>
      isModel ? value(at).toFixed(2) : number(value(at)) + unit;
    if (!Number.isFinite(value(place))) return [];
    const others = isModel ? [reference, rival ?? place, dense] : [reference];
    const words = others
      .filter((other, i) => others.findIndex((each) => isSame(each, other)) === i)
      .filter((other) => !isSame(place, other) && Number.isFinite(value(other)))
      .map((other) => `${lower(nameOf(other, data.run))} ${text(other)}`);
    return [/** @type {Figure} */ ([label, text(place), words.join(", ")])];
  }).slice(0, MAX_FIGURES);
}
