/* Views of one tensor, or of its module in every block, from profiles that are fetched when they are looked at. A
   view is {title, note, plot, spec, table: [heads, rows], pick?}, or a sentence on why there is none. */
import { lower, number, share, times } from "./canvas.js";
import { profiles } from "./histograms.js";
import { grid, lines } from "./plots.js";

const FENCE = 3; // Tukey's outer fence, in interquartile ranges
const NAMED = 8,
  FIRST_DECADE = -4,
  PER_DECADE = 24,
  MOST_POINTS = 1000,
  CELLS = 128,
  STEADY = 0.02;
const CELL_FIGURES = {
  mean: "Mean |weight|",
  max: "Largest |weight|",
  zeros: "Share of exact zeros",
  change: "Change of mean |weight| from dense",
};
const CHANNEL_FIGURES = {
  norm: "Norm of a channel's weights",
  max: "Largest |weight| of a channel",
  zeros: "Exact zeros of a channel, %",
};
const FLOWS = {
  inputs: "root mean square of the input",
  weights: "norm of the channel's weights",
  product: "input × norm of its weights",
};
const MISSING = (what) => `This run predates ${what}. Run it again to record them.`;
const count = (n) => n.toLocaleString("en");
function quantile(values, part) {
  const all = Float64Array.from(values).sort(),
    at = part * (all.length - 1),
    i = Math.floor(at);
  return all[i] + (all[Math.min(i + 1, all.length - 1)] - all[i]) * (at - i);
}

/** A profile at every stage that is drawn, of both runs: [{label, colour, dash, dense, s, data, shape, values}].
    @param page data, t, s, drawn: the stages, twin: of the other run */
async function stored({ data, t, drawn, twin }, names) {
  const sources = [[data, t, drawn.map((s) => [s, data.stages[s], false])]];
  const others = drawn
    .map((s) => [twin(t, s), s])
    .filter(([other]) => other && other.t >= 0 && other.s >= 0);
  const same = (other) =>
    other.data.model === data.model && other.data.stages[other.s].name === "dense";
  if (others.length)
    sources.push([
      others[0][0].data,
      others[0][0].t,
      others.filter(([other]) => !same(other)).map(([other, s]) => [other.s, data.stages[s], true]),
    ]);
  const found = await Promise.all(
    sources.map(async ([of, tensor, stages]) => {
      const { arrays } = await profiles(of.run, of.tensors[tensor].name, {
          names: names.join(","),
        }),
        { block } = of.tensors[tensor];
      return stages
        .map(([s, style, other]) => ({
          data: of,
          t: tensor,
          s,
          label: of.stages[s].label + (others.length ? `, ${of.run}` : ""),
          colour: style.colour,
          dash: other ? "dash" : style.dash,
          dense: of.stages[s].name === "dense",
          get: (name) => arrays[`${block}/${of.stages[s].name}/${name}`],
        }))
        .filter((each) => each.get(names[0]));
    }),
  );
  return found.flat();
}

async function matrix(page) {
  const { now, data, t } = page,
    figure = CELL_FIGURES[now.cells],
    percent = now.cells === "zeros",
    file = `${data.tensors[t].name}-matrix`;
  if (now.spot) return singleWeights(page);
  const found = await stored(page, [`map_${now.cells}`, "row_norm", "column_norm"]);
  if (!found.length)
    return now.cells === "change"
      ? "Choose a stage besides dense: the change is that from dense."
      : MISSING("maps of matrices");
  const panels = found.map((each) => {
    const {
        shape: [rows, columns],
        data: values,
      } = each.get(`map_${now.cells}`),
      spans = ["row_norm", "column_norm"].map(
        (name, side) => each.get(name)?.shape[0] ?? [rows, columns][side],
      );
    const begins = (side, i) => Math.floor((i * spans[side]) / [rows, columns][side]);
    return {
      label: each.label,
      rows,
      columns,
      spans,
      data: percent ? values.map((v) => 100 * v) : values,
      begins,
      words: (i, j) => `output ${begins(0, i)}, input ${begins(1, j)}`,
    };
  });
  const last = panels.at(-1),
    sizes = Array.from(last.data, Math.abs),
    [high, middle] = [quantile(sizes, 0.99), quantile(sizes, 0.5)],
    unit = percent ? " %" : "";
  const title =
    high - middle <= STEADY * high
      ? `${last.label}: ${lower(figure)} is ${number(middle)}${unit} all over the matrix`
      : !middle
        ? `${last.label}: ${lower(figure)} reaches ${number(high)}${unit}, in a few places`
        : `${last.label}: ${lower(figure)} is ${times(high / middle, 2)} its median in the top 1 % of places`;
  const [outputs, inputs] = last.spans,
    cell = [outputs / last.rows, inputs / last.columns].map(Math.ceil);
  return {
    title,
    plot: grid,
    note: `${figure}. n = ${count(outputs * inputs)} weights, ${count(outputs)} outputs × ${count(inputs)} inputs, about ${cell[0]} × ${cell[1]} weights a cell. A click shows single weights.`,
    spec: {
      panels,
      even: now.cells === "change",
      unit,
      names: ["Output channel", "Input channel"],
    },
    file,
    pick: ({ panel, i, j }) => ({ spot: `${panel.begins(0, i)},${panel.begins(1, j)}` }),
    table: ofPanels(
      panels,
      (panel, i) => panel.begins(0, i),
      (panel, j) => panel.begins(1, j),
    ),
  };
}

/** The stages below each other: a row for each row of cells, a column for each column. */
const ofPanels = (panels, row, column) => [
  [
    "Stage",
    "From output",
    ...Array.from({ length: panels[0].columns }, (_, j) => `Input ${column(panels[0], j)}`),
  ],
  panels.flatMap((panel) =>
    Array.from({ length: panel.rows }, (_, i) => [
      panel.label,
      row(panel, i),
      ...panel.data.subarray(i * panel.columns, (i + 1) * panel.columns),
    ]),
  ),
];

async function singleWeights({ now, data, t }) {
  const { head, arrays } = await profiles(data.run, data.tensors[t].name, { spot: now.spot });
  const panels = data.stages
    .filter(({ name }) => arrays[name])
    .map(({ name, label }) => {
      const {
        shape: [rows, columns],
        data: values,
      } = arrays[name];
      return {
        label,
        rows,
        columns,
        data: values,
        first: head.first,
        words: (i, j) => `output ${head.first[0] + i}, input ${head.first[1] + j}`,
      };
    });
  if (!panels.length)
    return "The weights themselves are not on this machine any more: neither the model nor what the run saved. Choose the whole matrix.";
  const last = panels.at(-1),
    zeros = last.data.reduce((sum, value) => sum + (value === 0), 0) / last.data.length,
    [top, left] = head.first;
  return {
    title: `${last.label}: ${share(zeros)} of these weights are exactly zero`,
    plot: grid,
    spec: { panels, even: true, unit: "", names: ["Output channel", "Input channel"] },
    file: `${data.tensors[t].name}-weights`,
    note: `n = ${count(last.data.length)} weights: outputs ${top} to ${top + last.rows - 1}, inputs ${left} to ${left + last.columns - 1}, as they are saved.`,
    table: ofPanels(
      panels,
      (_, i) => top + i,
      (_, j) => left + j,
    ),
  };
}

async function joint(page) {
  const { data, t, s } = page,
    last = [...page.drawn].reverse().find((each) => data.stages[each].name !== "dense");
  if (last === undefined)
    return "Choose a stage besides dense: weights are drawn by what they were in the dense tensor.";
  const found = await stored({ ...page, drawn: [last] }, ["joint"]);
  if (!found.length) return MISSING("joint histograms");
  const panels = found.map((each) => {
    const {
        shape: [bins],
        data: counts,
      } = each.get("joint"),
      axis = each.data.range(each.t),
      turned = new Float32Array(bins * bins);
    for (let before = 0; before < bins; before++)
      for (let after = 0; after < bins; after++)
        turned[after * bins + before] = counts[before * bins + after];
    const edge = (i) => axis[0] + (i * (axis[1] - axis[0])) / bins;
    return {
      label: each.label,
      rows: bins,
      columns: bins,
      data: turned,
      axis,
      edge,
      words: (i, j) => `dense ${number(edge(j + 0.5))}, now ${number(edge(i + 0.5))}`,
    };
  });
  const moved = found
      .map((each) => [each, each.data.value("moved", each.t, each.s)])
      .filter(([, value]) => Number.isFinite(value)),
    zeros = data.tail(t, last).share;
  const title =
    found.length > 1
      ? `The weights move by ${moved.map(([each, value]) => `${share(value)} in ${each.data.run}`).join(", ")}, of their norm`
      : `${found[0].label} moves the weights by ${share(moved[0]?.[1])} of their norm${zeros ? `; ${share(zeros)} are exactly zero` : ""}`;
  const rows = panels.flatMap((panel) =>
    Array.from(panel.data, (n, at) => [
      panel.label,
      panel.edge(at % panel.columns),
      panel.edge(Math.floor(at / panel.columns)),
      n,
    ]).filter((row) => row[3]),
  );
  return {
    title,
    plot: grid,
    spec: {
      panels,
      log: true,
      upwards: true,
      height: 440,
      dashed: true,
      unit: " weights",
      names: ["Weight after", "Weight, dense"],
    },
    file: `${data.tensors[t].name}-joint`,
    note: `n = ${count(data.tail(t, s).n)} weights in ${panels[0].rows} × ${panels[0].columns} bins, colours on a log scale; those beyond the axes count at their ends. On the dashed line a weight is what it was.`,
    table: [["Stage", "Dense from", "Now from", "Weights"], rows],
  };
}

/** Channels beyond Tukey's outer fences, the farthest first. */
function outliersOf(values) {
  const [low, high] = [quantile(values, 0.25), quantile(values, 0.75)],
    far = Array.from(values, (v) => Math.max(v - high, low - v));
  return high > low
    ? far
        .flatMap((value, i) => (value > FENCE * (high - low) ? [i] : []))
        .sort((a, b) => far[b] - far[a])
    : [];
}

/** Places to draw: all, or the lowest and the highest of each stretch. */
function envelope(values) {
  const stretch = Math.ceil((2 * values.length) / MOST_POINTS),
    places = [];
  if (stretch <= 2) return Array.from(values, (_, i) => i);
  for (let from = 0; from < values.length; from += stretch) {
    const part = values.slice(from, from + stretch),
      ends = [Math.min(...part), Math.max(...part)].map((v) => from + part.indexOf(v));
    places.push(...[...new Set(ends)].sort((a, b) => a - b));
  }
  return places;
}

async function channels(page) {
  const { now, data, t } = page,
    name = `${now.side}_${now.measure}`,
    zeros = `${now.side}_zeros`,
    scale = now.measure === "zeros" ? 100 : 1;
  const found = (await stored(page, [name, zeros])).filter(
    (each, _, [first]) => each.get(name).shape[0] === first.get(name).shape[0],
  );
  if (!found.length) return MISSING("statistics of channels");
  const figures = found.map((each) => Array.from(each.get(name).data, (v) => scale * v)),
    own = found.findLastIndex((each) => each.data === data),
    first = figures[own],
    outliers = outliersOf(first); // of the stage that is looked at
  const orders = figures.map((values) => {
    const order = values.map((_, i) => i);
    return now.order === "size" ? order.sort((a, b) => values[b] - values[a]) : order;
  });
  const series = found.map((each, k) => {
    const order = orders[k],
      values = order.map((i) => figures[k][i]),
      kept = envelope(values),
      ringed = new Set(outliers);
    return {
      ...each,
      x: kept,
      y: kept.map((i) => values[i]),
      names: kept.map((i) => order[i]),
      marks: kept.flatMap((i, at) => (ringed.has(order[i]) ? [at] : [])),
    };
  });
  const across =
    now.order === "size" ? "Rank, each stage from its largest channel on" : "Number of the channel";
  const median = quantile(first, 0.5),
    kind = now.side === "row" ? "output channel" : "input channel",
    largest = `the largest is ${times(Math.max(...first) / median, 2)} the median`;
  const many = outliers.length,
    stands = many === 1 ? `1 ${kind} stands out` : `${many} ${kind}s stand out`;
  const spared = found
    .filter((each) => !each.dense && each.get(zeros))
    .map((each) => {
      const all = each.get(zeros).data,
        mean = (list) => list.reduce((sum, v) => sum + v, 0) / (list.length || 1),
        ringed = new Set(outliers);
      return `${each.label}: ${share(mean(outliers.map((i) => all[i])))} of their weights are zero, ${share(mean(Array.from(all).filter((_, i) => !ringed.has(i))))} of the others'.`;
    });
  const named = many
    ? `${many === 1 ? "1 outlier (ring)" : `${many} outliers (rings)`}: ${outliers.slice(0, NAMED).join(", ")}${many > NAMED ? " …" : ""}. ${spared.join(" ")}`
    : `No channel lies beyond the outer fences (${FENCE} interquartile ranges).`;
  return {
    title: median
      ? `${found[own].label}: ${many ? stands : `no ${kind} stands out`}; ${largest}`
      : `${found[own].label}: half of the channels have none`,
    plot: lines,
    file: `${data.tensors[t].name}-${name}`,
    note: `n = ${count(first.length)} channels${first.length > MOST_POINTS ? ", the lowest and highest of each stretch drawn" : ""}. ${named}`,
    spec: { series, yLog: now.y === "log", names: [CHANNEL_FIGURES[now.measure], across] },
    table: [
      ["Channel", ...found.map(({ label }) => label)],
      orders[0].map((i) => [String(i), ...figures.map((values) => values[i])]),
    ],
  };
}

/** Edges k of the |w| axis: std * 10^(FIRST_DECADE + k / PER_DECADE), std of the dense tensor. */
async function magnitudes(page) {
  const found = await stored(page, ["magnitudes"]),
    { data, t } = page;
  if (!found.length) return MISSING("magnitudes");
  const half = (counts) => {
    const all = counts.reduce((a, b) => a + b, 0);
    let sum = 0;
    return counts.findIndex((n) => (sum += n) >= all / 2);
  };
  const series = found.map((each) => {
    const counts = each.get("magnitudes").data,
      std = each.data.value("dense_std", each.t, each.s) || 1,
      { n } = each.data.tail(each.t, each.s);
    const x = Array.from(counts, (_, k) => std * 10 ** (FIRST_DECADE + (k + 0.5) / PER_DECADE)),
      drawn = [...x.keys()].filter((k) => counts[k]);
    return {
      ...each,
      counts,
      x: drawn.map((k) => x[k]),
      y: drawn.map((k) => (100 * counts[k]) / n),
      median: x[half(counts)],
    };
  });
  const [first, last] = [series[0], series.at(-1)],
    before = series.length > 1 ? `, before ${number(first.median, 2)}` : "";
  return {
    title: `${last.label}: half of the weights besides zero are below ${number(last.median, 2)}${before}`,
    plot: lines,
    file: `${data.tensors[t].name}-magnitudes`,
    note: `n = ${count(data.tail(t, page.s).n)} weights, ${PER_DECADE} bins for each factor of ten; the first and the last are open.`,
    spec: {
      series,
      xLog: true,
      yLog: page.now.y === "log",
      names: ["Share of all weights per bin, %", "|Weight|"],
    },
    table: [
      ["Stage", "|w|", "Weights"],
      series.flatMap((each) =>
        each.x.map((w, i) => [
          each.label,
          w,
          Math.round((each.y[i] * each.data.tail(each.t, each.s).n) / 100),
        ]),
      ),
    ],
  };
}

/** Both ends of the power law of the tail, of the ranks 1 + a * (value / start)^(-2(alpha - 1)). */
function tailOf({ data, t, s }, values) {
  const alpha = data.value("alpha", t, s),
    start = data.value("alpha_start", t, s);
  if (!Number.isFinite(alpha) || !(start > 0)) return null;
  const members = values.filter((v) => v >= start * (1 - 1e-3)).length,
    ends = [start, values[0]];
  return { x: ends.map((v) => members * (v / start) ** (-2 * (alpha - 1))), y: ends };
}

async function spectrum(page) {
  const found = await stored(page, ["singular_values"]),
    { data, t } = page;
  if (!found.length) return MISSING("spectra");
  const series = found.flatMap((each) => {
    const y = each.get("singular_values").data,
      tail = tailOf(each, y);
    return [
      { ...each, x: Array.from(y, (_, i) => i + 1), y },
      ...(tail ? [{ ...each, ...tail, dash: "dot", thin: true }] : []),
    ];
  });
  const rank = ({ y }) => y.reduce((sum, v) => sum + v * v, 0) / y[0] ** 2,
    own = series.filter((each) => !each.thin),
    [first, last] = [own[0], own.at(-1)].map(rank);
  const label = own.at(-1).label,
    steady = Math.abs(last / first - 1) <= STEADY,
    verb = own.length === 1 ? "has a" : "keeps the";
  const alphas = found.map((each) => [each.label, each.data.value("alpha", each.t, each.s)]);
  const fits = alphas
    .filter(([, alpha]) => Number.isFinite(alpha))
    .map(([of, alpha]) => `${of} α = ${number(alpha)}`);
  return {
    title:
      own.length === 1 || steady
        ? `${label} ${verb} stable rank of ${number(last)}`
        : `${label} ${last > first ? "raises" : "lowers"} the stable rank from ${number(first)} to ${number(last)}`,
    note: `n = ${own[0].y.length} singular values.${fits.length ? ` Dotted: power law of the tail, ${fits.join(", ")}.` : ""}`,
    plot: lines,
    file: `${data.tensors[t].name}-spectrum`,
    spec: { series, xLog: true, yLog: true, names: ["Singular value", "Rank"] },
    table: [
      ["Rank", ...own.map((each) => each.label)],
      own[0].x.map((n, i) => [String(n), ...own.map(({ y }) => y[i] ?? NaN)]),
    ],
  };
}

/* inputs: x = sqrt(mean x^2 over the calibration tokens); weights: w = norm of the weights that meet it; product: x w,
   about what the channel adds to the outputs (Wanda's score, summed up). */
async function inputs({ now, data, t, s }) {
  const { module } = data.tensors[t],
    stage = data.stages[s],
    short = module.split(".").pop();
  const { arrays } = await profiles(data.run, data.tensors[t].name, {
    names: "input_energy,column_norm",
    blocks: "1",
  });
  const rows = data.blocks.flatMap((block) => {
    const energy = Object.entries(arrays).find(
        ([name]) => name.startsWith(`${block}/`) && name.endsWith("/input_energy"),
      )?.[1].data,
      norm = arrays[`${block}/${stage.name}/column_norm`]?.data;
    const x = energy && Float64Array.from(energy, Math.sqrt),
      values = { inputs: x, weights: norm, product: x && norm && x.map((v, i) => v * norm[i]) }[
        now.flow
      ];
    return values ? [{ block, values }] : [];
  });
  if (!rows.length)
    return now.flow === "weights"
      ? `${stage.label}: not recorded here.`
      : "This run has stored no inputs of its layers: they are recorded while a run calibrates. Run it again to record them.";
  const width = rows[0].values.length,
    columns = Math.min(CELLS, width),
    cells = new Float64Array(rows.length * columns),
    largest = [];
  let most = { times: -1 };
  rows.forEach(({ block, values }, i) => {
    const median = quantile(values, 0.5);
    for (let n = 0; n < width; n++) {
      const at = i * columns + Math.floor((n * columns) / width);
      if (!(cells[at] > values[n])) {
        cells[at] = values[n];
        largest[at] = n;
      }
      if (median > 0 && values[n] / median > most.times)
        most = { times: values[n] / median, block, channel: n };
    }
  });
  const panel = {
    label: `${short}${now.flow === "inputs" ? "" : `, ${stage.label}`}`,
    rows: rows.length,
    columns,
    spans: [rows.length, width],
    named: rows.map(({ block }) => block),
    data: cells,
    words: (i, j) => `block ${rows[i].block}, channel ${largest[i * columns + j]}`,
  };
  return {
    title: `Channel ${most.channel} stands out in block ${most.block}: ${times(most.times)} the median of its block`,
    plot: grid,
    file: `${module}-${now.flow}`,
    note: `Colours: ${FLOWS[now.flow]}, on a log scale. n = ${rows.length} blocks × ${count(width)} input channels.${width > CELLS ? ` A cell shows the largest of about ${Math.round(width / CELLS)} channels.` : ""}`,
    spec: { panels: [panel], log: true, unit: "", names: ["Block", "Input channel"] },
    pick: ({ i }) => ({ tensor: data.tensors[data.at(rows[i].block, module)].name }),
    table: [
      ["Block", ...Array.from({ length: width }, (_, n) => `Channel ${n}`)],
      rows.map(({ block, values }) => [String(block), ...values]),
    ],
  };
}

export const VIEWS = { magnitudes, matrix, joint, channels, spectrum, inputs };
