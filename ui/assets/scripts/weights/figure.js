/* Values of the map: a statistic, its difference from the reference, or the share of marked weights. */
import { lower, number } from "./canvas.js";
import { limits } from "./map.js";
/** @import {Range} from "./canvas.js" */
/** @import {Comparison} from "./comparison.js" */

/**
 * `stat`: statistic, unset for marked magnitudes. `at`: values by tensor at a stage. `ends`: limits of the color
 * scale, the same at all stages.
 * @typedef {{label: string, unit: string, question: string, stat?: string, rival?: string, even?: boolean,
 *   at: (s: number) => number[]}} Figure
 * @typedef {Figure & {ends: Range}} MapFigure
 */

/** @type {(comparison: Comparison, stat: string, brush: Range | null) => MapFigure} */
export function mapFigure(comparison, stat, brush) {
  const { main } = comparison.data;
  const figure = brush ? marked(comparison, brush) : statistic(comparison, stat);
  const compared = figure.even && main.length > 1 ? main.slice(1) : main;
  return { ...figure, ends: limits(compared.flatMap(figure.at), figure.even) };
}

/** @type {(comparison: Comparison, stat: string) => Figure} */
function statistic(comparison, stat) {
  const { data, other, chosen } = comparison;
  const wanted = data.statistics.find(({ name }) => name === stat) ?? data.statistics[0];
  const { name, label, question, percent } = wanted;
  const values = (/** @type {number} */ s) => data.tensors.map((_, t) => data.shown(name, t, s));
  if (!other && chosen < 0)
    return { stat: name, label, unit: percent ? " %" : "", question, at: values };
  const rival = other ? other.run : lower(data.stages[chosen].short);
  return {
    stat: name,
    label,
    rival,
    unit: percent ? " points" : "",
    even: true,
    question: `Where does ${lower(label)} differ from ${rival}?`,
    at: (s) =>
      values(s).map((value, t) => {
        const place = other ? comparison.twin(t, s) : comparison.reference(t, s);
        return place ? value - place.data.shown(name, place.t, place.s) : NaN;
      }),
  };
}

/** Share of the weights in the marked range. @type {(comparison: Comparison, brush: Range) => Figure} */
function marked({ data }, [low, high]) {
  return {
    label: low
      ? `Weights with magnitudes from ${number(low)} to ${number(high)}`
      : `Weights with magnitudes below ${number(high)}`,
    unit: " %",
    question: "Where do the marked weights live?",
    at: (s) =>
      data.tensors.map((_, t) => (data.has(t, s) ? 100 * data.within(t, s, [low, high]) : NaN)),
  };
}
