/* Views of one tensor, or of its module in every block. Profiles are fetched on demand. */
import { lower, number, share, times } from "./canvas.js";
import { profiles } from "./histograms.js";
import { grid, lines } from "./plots.js";
import { shortName } from "./words.js";
/** @import {Histograms, PackedArray} from "./histograms.js" */
/** @import {Place} from "./histogram.js" */
/** @import {Line, Panel, Plot, PlotPlace} from "./plots.js" */
/** @import {State} from "./state.js" */
/** @import {Figures} from "./tables.js" */

/**
 * Input of a view.
 * @typedef {object} ViewInput
 * @property {State} now
 * @property {Histograms} data
 * @property {number} t
 * @property {number} s
 * @property {number[]} drawn stages
 * @property {(t: number, s: number) => Place | null} twin the same in the other run
 */
/**
 * @typedef {object} View
 * @property {string} title
 * @property {string} note
 * @property {string} file
 * @property {Figures} table
 * @property {(canvas: HTMLCanvasElement, height?: number) => Plot} draw
 * @property {Line[]} [legend]
 * @property {(place: PlotPlace) => Partial<State>} [pick] change of the state by a click
 */
/** @typedef {(input: ViewInput) => Promise<View | string>} DrawView Returns a sentence if there is nothing to draw. */
/**
 * Profiles of a tensor at a stage of a run, and how its line is drawn.
 * @typedef {object} RecordedStage
 * @property {Histograms} data
 * @property {number} t
 * @property {number} s
 * @property {string} label
 * @property {string} color
 * @property {string} dash
 * @property {PackedArray} profile the first of the names
 * @property {(name: string) => PackedArray | undefined} get
 */

const FENCE = 3; // Tukey's outer fence, in interquartile ranges
const MAX_NAMED = 8; // outliers in a note
const STEADY = 0.02; // smaller relative changes are ignored
/** @type {Record<string, string>} */
const CELL_FIGURES = {
  mean: "Mean |weight|",
  max: "Largest |weight|",
  zeros: "Share of exact zeros",
  change: "Change of mean |weight| from dense",
};
/** @type {Record<string, string>} */
const CHANNEL_FIGURES = {
  norm: "Norm of a channel's weights",
  max: "Largest |weight| of a channel",
  zeros: "Exact zeros of a channel, %",
};
/** @type {[rows: string, columns: string]} */
const CHANNELS = ["Output channel", "Input channel"];

const missing = (/** @type {string} */ what) =>
  `This run predates ${what}. Run it again to record them.`;
const count = (/** @type {number} */ n) => n.toLocaleString("en");

/** @type {(values: ArrayLike<number>, part: number) => number} */
function quantile(values, part) {
  const sorted = Float64Array.from(values).sort();
  const at = part * (sorted.length - 1);
  const i = Math.floor(at);
  return sorted[i] + (sorted[Math.min(i + 1, sorted.length - 1)] - sorted[i]) * (at - i);
}

/** @type {(values: number[]) => number} */
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);

/** Profiles at every stage that is drawn, of both runs; only stages that have the first of the names.
    @param {ViewInput} input @param {string[]} names @returns {Promise<RecordedStage[]>} */
async function recordedStages({ data, t, drawn, twin }, names) {
  const twins = drawn.flatMap((s) => {
    const place = twin(t, s);
    return place ? [{ ...place, stage: data.stages[s] }] : [];
  });
  const own = drawn.map((s) => ({ data, t, s, stage: data.stages[s] }));
  const others = twins.filter(
    (other) => other.data.model !== data.model || other.data.stages[other.s].name !== "dense",
  );
  const query = { names: names.join(",") };
  const recorded = await Promise.all(
    [own, others]
      .filter((places) => places.length)
      .map(async (places) => {
        const run = places[0].data;
        const { name, block } = run.tensors[places[0].t];
        const { arrays } = await profiles(run.run, name, query);
        return places.flatMap(({ s, stage }) => {
          const get = (/** @type {string} */ profile) =>
            arrays[`${block}/${run.stages[s].name}/${profile}`];
          if (!get(names[0])) return [];
          return [
            {
              data: run,
              t: places[0].t,
              s,
              label: run.stages[s].label + (twins.length ? `, ${run.run}` : ""),
              color: stage.color,
              dash: run === data ? stage.dash : "dash",
              profile: get(names[0]),
              get,
            },
          ];
        });
      }),
  );
  return recorded.flat();
}

/* --- the matrix ------------------------------------------------------------------------------ */

/** Cells of a stage's matrix, with the channels where a cell begins. @param {string} label @param {PackedArray} cells
    @param {(i: number) => number} output @param {(j: number) => number} input */
function matrixPanel(label, { shape: [rows, columns], data }, output, input) {
  const words = (/** @type {number} */ i, /** @type {number} */ j) =>
    `output ${output(i)}, input ${input(j)}`;
  return { label, rows, columns, data: Array.from(data), output, input, words };
}

/** The cells of all panels, one stage below the other. @param {ReturnType<typeof matrixPanel>[]} panels
    @returns {Figures} */
function matrixTable(panels) {
  const [{ columns, input }] = panels;
  const heads = Array.from({ length: columns }, (_, j) => `Input ${input(j)}`);
  const rows = panels.flatMap(({ label, rows, columns, data, output }) =>
    Array.from({ length: rows }, (_, i) => [
      label,
      output(i),
      ...data.slice(i * columns, (i + 1) * columns),
    ]),
  );
  return [["Stage", "From output", ...heads], rows];
}

/** Cells of the matrix, or single weights around a spot. @type {DrawView} */
async function matrix(input) {
  const { now, data, t } = input;
  if (now.spot) return singleWeights(input);
  const figure = CELL_FIGURES[now.cells];
  const recorded = await recordedStages(input, [`map_${now.cells}`, "row_norm", "column_norm"]);
  if (!recorded.length && now.cells === "change")
    return "Choose a stage besides dense: dense is the reference.";
  if (!recorded.length) return missing("maps of matrices");
  const unit = now.cells === "zeros" ? " %" : "";
  const panels = recorded.map(({ label, profile, get }) => {
    const spans = ["row_norm", "column_norm"].map(
      (name, side) => get(name)?.shape[0] ?? profile.shape[side],
    );
    const [outputs, inputs] = spans.map(
      (span, side) => (/** @type {number} */ i) => Math.floor((i * span) / profile.shape[side]),
    );
    const panel = matrixPanel(label, profile, outputs, inputs);
    return { ...panel, spans, data: panel.data.map((value) => (unit ? 100 * value : value)) };
  });
  const last = panels[panels.length - 1];
  const [outputs, inputs] = last.spans;
  const cell = `${Math.ceil(outputs / last.rows)} × ${Math.ceil(inputs / last.columns)}`;
  const even = now.cells === "change";
  return {
    title: matrixTitle(last, figure, unit),
    draw: (canvas, height) => grid(canvas, { panels, even, unit, names: CHANNELS, height }),
    note: `${figure}. n = ${count(outputs * inputs)} weights, ${count(outputs)} outputs × ${count(inputs)} inputs, about ${cell} weights a cell. A click shows single weights.`,
    file: `${data.tensors[t].name}-matrix`,
    pick: ({ panel, i, j }) => ({ spot: `${panels[panel].output(i)},${panels[panel].input(j)}` }),
    table: matrixTable(panels),
  };
}

/** @type {(panel: Panel, figure: string, unit: string) => string} */
function matrixTitle({ label, data }, figure, unit) {
  const sizes = Array.from(data, Math.abs);
  const high = quantile(sizes, 0.99);
  const middle = quantile(sizes, 0.5);
  const subject = `${label}: ${lower(figure)}`;
  if (high - middle <= STEADY * high)
    return `${subject} is ${number(middle)}${unit} all over the matrix`;
  if (!middle) return `${subject} reaches ${number(high)}${unit}, in a few places`;
  return `${subject} is ${times(high / middle, 2)} its median in the top 1 % of places`;
}

/** @type {DrawView} */
async function singleWeights({ now, data, t }) {
  const { head, arrays } = await profiles(data.run, data.tensors[t].name, { spot: now.spot });
  const [top, left] = head.first ?? [0, 0];
  const panels = data.stages
    .filter(({ name }) => arrays[name])
    .map(({ name, label }) => ({
      ...matrixPanel(
        label,
        arrays[name],
        (i) => top + i,
        (j) => left + j,
      ),
      first: [top, left],
    }));
  const last = panels.at(-1);
  if (!last)
    return "Neither the model nor the saved weights are on this machine. Choose the whole matrix.";
  const weights = last.data.length;
  const zeros = last.data.filter((weight) => weight === 0).length / weights;
  return {
    title: `${last.label}: ${share(zeros)} of these weights are exactly zero`,
    draw: (canvas, height) =>
      grid(canvas, { panels, even: true, unit: "", names: CHANNELS, height }),
    file: `${data.tensors[t].name}-weights`,
    note: `n = ${count(weights)} weights: outputs ${top} to ${top + last.rows - 1}, inputs ${left} to ${left + last.columns - 1}, as they are saved.`,
    table: matrixTable(panels),
  };
}

/* --- before and after ------------------------------------------------------------------------ */

/** @type {DrawView} */
async function joint(input) {
  const { data, t, s } = input;
  const after = input.drawn.filter((stage) => data.stages[stage].name !== "dense");
  if (!after.length)
    return "Choose a stage besides dense: each weight is drawn by its dense value.";
  const recorded = await recordedStages({ ...input, drawn: after }, ["joint"]);
  if (!recorded.length) return missing("joint histograms");
  const panels = recorded.map(jointPanel);
  const rows = panels.flatMap(({ label, data: counts, columns, edge }) =>
    counts.flatMap((n, at) =>
      n ? [[label, edge(at % columns), edge(Math.floor(at / columns)), n]] : [],
    ),
  );
  return {
    title: jointTitle(recorded, data.tail(t, recorded[recorded.length - 1].s).share),
    draw: (canvas, height = 440) =>
      grid(canvas, {
        panels,
        log: true,
        upwards: true,
        height,
        dashed: true,
        unit: " weights",
        names: ["Weight after", "Weight, dense"],
      }),
    file: `${data.tensors[t].name}-joint`,
    note: `n = ${count(data.tail(t, s).n)} weights. On the dashed line a weight is unchanged.`,
    table: [["Stage", "Dense from", "Now from", "Weights"], rows],
  };
}

/** Counts by weight after and before, as a panel. @param {RecordedStage} recorded */
function jointPanel({ label, data, t, profile }) {
  const [bins] = profile.shape;
  const axis = data.range(t);
  const counts = Array.from(profile.data, (_, at) => {
    const after = Math.floor(at / bins);
    return profile.data[(at % bins) * bins + after]; // stored by weight before
  });
  const edge = (/** @type {number} */ i) => axis[0] + (i * (axis[1] - axis[0])) / bins;
  const words = (/** @type {number} */ i, /** @type {number} */ j) =>
    `dense ${number(edge(j + 0.5))}, now ${number(edge(i + 0.5))}`;
  return { label, rows: bins, columns: bins, data: counts, axis, edge, words };
}

/** @type {(recorded: RecordedStage[], zeros: number) => string} */
function jointTitle(recorded, zeros) {
  const moved = recorded.map(({ data, t, s, label }) => ({
    label,
    value: data.value("moved", t, s),
  }));
  const known = moved.filter(({ value }) => Number.isFinite(value));
  const parts = known.map(({ label, value }) => `${label} ${share(value)}`);
  if (recorded.length > 1) return `The weights move, relative to their norm: ${parts.join(", ")}`;
  const pruned = zeros ? `; ${share(zeros)} are exactly zero` : "";
  return `${recorded[0].label} moves the weights by ${share(moved[0].value)} of their norm${pruned}`;
}

/* --- channels -------------------------------------------------------------------------------- */

/** Channels beyond Tukey's outer fences, the farthest first. @param {number[]} values */
function outliersOf(values) {
  const low = quantile(values, 0.25);
  const high = quantile(values, 0.75);
  const distances = values.map((value) => Math.max(value - high, low - value));
  if (high <= low) return [];
  return [...values.keys()]
    .filter((i) => distances[i] > FENCE * (high - low))
    .sort((a, b) => distances[b] - distances[a]);
}

/** @type {DrawView} */
async function channels(input) {
  const { now, data, t } = input;
  const name = `${now.side}_${now.measure}`;
  const recorded = (await recordedStages(input, [name, `${now.side}_zeros`])).filter(
    ({ profile }, _, [first]) => profile.shape[0] === first.profile.shape[0],
  );
  const scale = now.measure === "zeros" ? 100 : 1;
  const figures = recorded.map(({ profile }) => Array.from(profile.data, (value) => scale * value));
  const front = recorded.findLastIndex((each) => each.data === data);
  if (front < 0) return missing("statistics of channels");
  const values = figures[front];
  const outliers = outliersOf(values);
  const orders = figures.map((figure) => {
    const order = [...figure.keys()];
    return now.order === "size" ? order.sort((a, b) => figure[b] - figure[a]) : order;
  });
  const series = recorded.map((each, k) => channelLine(each, figures[k], orders[k], outliers));
  const across =
    now.order === "size" ? "Rank, each stage from its largest channel on" : "Number of the channel";
  const kind = now.side === "row" ? "output channel" : "input channel";
  const yLog = now.y === "log";
  return {
    title: `${recorded[front].label}: ${channelTitle(values, kind, outliers.length)}`,
    draw: (canvas, height) =>
      lines(canvas, { series, yLog, names: [CHANNEL_FIGURES[now.measure], across], height }),
    legend: series,
    file: `${data.tensors[t].name}-${name}`,
    note: `n = ${count(values.length)} channels. ${outlierNote(recorded, `${now.side}_zeros`, outliers)}`,
    table: [
      ["Channel", ...recorded.map(({ label }) => label)],
      orders[0].map((i) => [String(i), ...figures.map((figure) => figure[i])]),
    ],
  };
}

/** @type {(stage: RecordedStage, figure: number[], order: number[], outliers: number[]) => Line} */
function channelLine({ label, color, dash }, figure, order, outliers) {
  return {
    label,
    color,
    dash,
    x: [...order.keys()],
    y: order.map((i) => figure[i]),
    names: order,
    marks: [...order.keys()].filter((at) => outliers.includes(order[at])),
  };
}

/** @type {(values: number[], kind: string, outliers: number) => string} */
function channelTitle(values, kind, outliers) {
  const median = quantile(values, 0.5);
  if (!median) return "half of the channels have none";
  let subject = `no ${kind} stands out`;
  if (outliers === 1) subject = `1 ${kind} stands out`;
  if (outliers > 1) subject = `${outliers} ${kind}s stand out`;
  return `${subject}; the largest is ${times(Math.max(...values) / median, 2)} the median`;
}

/** @type {(recorded: RecordedStage[], zerosName: string, outliers: number[]) => string} */
function outlierNote(recorded, zerosName, outliers) {
  if (!outliers.length)
    return `No channel lies beyond the outer fences (${FENCE} interquartile ranges).`;
  const zeros = recorded.flatMap(({ data, s, label, get }) => {
    const profile = get(zerosName);
    if (!profile || data.stages[s].name === "dense") return [];
    const others = Array.from(profile.data).filter((_, i) => !outliers.includes(i));
    const ringed = share(mean(outliers.map((i) => profile.data[i])));
    return [
      `${label}: ${ringed} of their weights are zero, ${share(mean(others))} of the others'.`,
    ];
  });
  const rings = outliers.length === 1 ? "1 outlier (ring)" : `${outliers.length} outliers (rings)`;
  const more = outliers.length > MAX_NAMED ? " …" : "";
  return `${rings}: ${outliers.slice(0, MAX_NAMED).join(", ")}${more}. ${zeros.join(" ")}`;
}

/* --- singular values --------------------------------------------------------------------------- */

/** @type {DrawView} */
async function spectrum(input) {
  const { data, t } = input;
  const recorded = await recordedStages(input, ["singular_values"]);
  if (!recorded.length) return missing("spectra");
  const spectra = recorded.map(({ label, color, dash, profile }) => {
    const y = Array.from(profile.data);
    return { label, color, dash, x: y.map((_, i) => i + 1), y };
  });
  const [{ x: ranks }] = spectra;
  return {
    title: spectrumTitle(spectra),
    note: `n = ${ranks.length} singular values.`,
    draw: (canvas, height) =>
      lines(canvas, {
        series: spectra,
        xLog: true,
        yLog: true,
        names: ["Singular value", "Rank"],
        height,
      }),
    legend: spectra,
    file: `${data.tensors[t].name}-spectrum`,
    table: [
      ["Rank", ...spectra.map(({ label }) => label)],
      ranks.map((rank, i) => [String(rank), ...spectra.map(({ y }) => y[i] ?? NaN)]),
    ],
  };
}

/** @param {{label: string, y: number[]}[]} spectra */
function spectrumTitle(spectra) {
  const ranks = spectra.map(({ y }) => y.reduce((sum, v) => sum + v * v, 0) / y[0] ** 2);
  const [first] = ranks;
  const last = ranks[ranks.length - 1];
  const { label } = spectra[spectra.length - 1];
  if (spectra.length === 1) return `${label} has a stable rank of ${number(last)}`;
  if (Math.abs(last / first - 1) <= STEADY)
    return `${label} keeps the stable rank of ${number(last)}`;
  const verb = last > first ? "raises" : "lowers";
  return `${label} ${verb} the stable rank from ${number(first)} to ${number(last)}`;
}

/** Views by name. @type {Record<string, DrawView>} */
export const VIEWS = { matrix, joint, channels, spectrum };
