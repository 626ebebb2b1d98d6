/* Panels of layers: the map of all layers, the weights of one layer, and the cost of its format. */
import { number, share } from "../weights/canvas.js";
import { HistogramChart } from "../weights/histogram.js";
import { LayerMap } from "../weights/map.js";
import { offer, table } from "../weights/tables.js";
import { Comb } from "./comb.js";
import { tell } from "./elements.js";
import { bitsPerWeight } from "./formats.js";
import { megabytes } from "./measured.js";
import { overlaid } from "./tensor.js";

const { find } = window.slimscope;

/** @typedef {import("./view.js").View} View */
/** @typedef {import("./formats.js").Format} Format */
/** @typedef {{words: string, many: number, color: string}} Count Layers in one format. */

const FEW = 3; // formats that are counted
const STEADY = ["measured", "tensor", "sparsity", "budget"]; // changes without motion

/** @param {number} many @param {string} word */
export const plural = (many, word) =>
  `${many.toLocaleString("en")} ${word}${many === 1 ? "" : "s"}`;
/** A label inside a sentence. @param {string} label */
const inside = (label) => label.replace("Block", "block");

export class MapPanel {
  /** @param {HTMLElement} card
      @param {{hover: (t: number) => void, pick: (t: number, keeps?: boolean) => void, choose: (tensors: number[], adds: boolean) => void}} on */
  constructor(card, on) {
    this.card = card;
    this.canvas = find(card, "canvas", HTMLCanvasElement);
    this.chart = new LayerMap(this.canvas, on);
  }

  /** @param {View} view @param {number} height */
  draw(view, height) {
    const { formats, coloring: by } = view;
    const isFormats = by === "format";
    const { label, value } = this.#figure(view);
    const values = formats.map(value);
    const key = this.#counts(view);
    this.chart.draw({
      data: ["sensitivity", "error"].includes(by) ? this.#known(view, values) : view.map,
      values,
      label,
      unit: "",
      even: false,
      log: by !== "bytes",
      picked: view.focus,
      height,
      colors: isFormats
        ? formats.map((form) => form.color ?? view.model.colors.unchanged)
        : undefined,
      chosen: view.chosen.size < view.scope("all").size ? view.chosen : undefined,
      pinned: view.pinned,
      key: isFormats ? key : undefined,
    });
    const title = isFormats ? this.#formats(view, key) : this.#worst(view, label, values);
    find(this.card, '[data-knob="color"]', HTMLSelectElement).value = by;
    this.#offerFormats(view);
    tell(find(this.card, "h2"), title);
    this.canvas.dataset.words = title;
    const t = view.hovered;
    const figure = isFormats || t < 0 ? "" : ` · ${number(values[t])}`;
    find(this.card, "output").textContent =
      t < 0 ? "" : `${view.layers[t].label}: ${formats[t].label}${figure}`;
  }

  /** The quantity that colors the cells. @param {View} view
      @returns {{label: string, value: (form: Format, i: number) => number}} */
  #figure(view) {
    const { predictions, figuresAt } = view;
    const where = figuresAt ? `at ${figuresAt.short}` : "in this state";
    switch (view.coloring) {
      case "sensitivity":
        return {
          label: `Loss of one layer ${where}, nats a token`,
          value: (form, i) => predictions.figure("predicted", i, figuresAt ?? form),
        };
      case "error":
        return {
          label: `Output error ${where}, %`,
          value: (form, i) => 100 * predictions.figure("error", i, figuresAt ?? form),
        };
      case "bytes":
        return { label: "MB", value: (form, i) => predictions.nbytes(i, form) / 1e6 };
      default:
        return { label: "", value: () => NaN };
    }
  }

  /** Lists the formats for which sensitivity and error are known. @param {View} view */
  #offerFormats({ predictions, figuresAt, coloring }) {
    const select = find(this.card, '[data-knob="at"]', HTMLSelectElement);
    const isOffered = ["sensitivity", "error"].includes(coloring) && predictions.run !== "";
    select.closest("label")?.toggleAttribute("hidden", !isOffered);
    if (!isOffered) return;
    /** @type {[string, string][]} */
    const formats = predictions.formats.map(({ label, text }) => [`at ${label}`, text]);
    offer(select, [["in this state", "own"], ...formats], figuresAt?.text ?? "own");
  }

  /** Rows of the map with known values. @param {View} view @param {number[]} values */
  #known({ map, layers, focus }, values) {
    const modules = map.modules.filter((module) =>
      layers.some(
        (layer, i) => layer.module === module && (Number.isFinite(values[i]) || i === focus),
      ),
    );
    return modules.length ? { ...map, modules } : map;
  }

  /** Layers by format, the most bits first. @param {View} view @returns {Count[]} */
  #counts(view) {
    /** @type {Map<string, Count>} */
    const counts = new Map();
    for (const form of view.formats.toSorted((a, b) => view.bits(b) - view.bits(a))) {
      const many = (counts.get(form.short)?.many ?? 0) + 1;
      const hue = form.color ?? view.model.colors.unchanged;
      counts.set(form.short, { words: form.short, many, color: hue });
    }
    return [...counts.values()];
  }

  /** @param {View} view @param {Count[]} counts */
  #formats(view, counts) {
    if (counts.length > FEW) return this.#spared(view);
    const dense = view.known.dense;
    const outside = view.formats.filter((_, i) => view.layers[i].block < 0);
    const apart =
      counts.length > 1 &&
      outside.length === counts.find(({ words }) => words === dense.short)?.many &&
      outside.every((form) => form === dense);
    const said = counts
      .filter(({ words }) => !apart || words !== dense.short)
      .sort((a, b) => b.many - a.many)
      .map(({ many, words }) => `${words.replace("%", "% zeros")} in ${plural(many, "layer")}`)
      .join(", ");
    if (!apart) return said;
    const rest = outside.length > 1 ? "embedding and head stay" : "the embedding stays";
    return `${said}; ${rest} at ${dense.short}`;
  }

  /** The kinds of matrix with the most and the fewest bits a weight, or of a pruned model with the fewest and the most
      zeros. @param {View} view */
  #spared(view) {
    const isPruned = view.formats.every(({ width }) => !width);
    const kinds = view.model.modules
      .map((name) => {
        const own = view.formats.filter((_, i) => view.layers[i].module === name);
        const amount = (/** @type {Format} */ form) => (isPruned ? -form.drop : view.bits(form));
        const mean = own.reduce((sum, form) => sum + amount(form), 0) / own.length;
        return { name: name.split(".").pop(), mean };
      })
      .sort((a, b) => b.mean - a.mean);
    const [most, least] = [kinds[0], kinds[kinds.length - 1]];
    return isPruned
      ? `${most.name} gets the fewest zeros, ${share(-most.mean)}; ${least.name} the most, ${share(-least.mean)}`
      : `${most.name} gets the most bits, ${number(most.mean)} a weight; ${least.name} the fewest, ${number(least.mean)}`;
  }

  /** @param {View} view @param {string} label @param {number[]} values */
  #worst(view, label, values) {
    const worst = values.reduce(
      (best, each, i) => (Number.isFinite(each) && !(each <= values[best]) ? i : best),
      -1,
    );
    if (!values[worst]) return `${label}: ${view.isDense ? "nothing is changed yet" : "not known"}`;
    const layer = inside(view.layers[worst].label);
    const { figuresAt, coloring } = view;
    if (coloring !== "sensitivity" || !figuresAt)
      return `${label}: most in ${layer}, ${number(values[worst])}`;
    const rising = values.filter(Number.isFinite).sort((a, b) => a - b);
    let sum = 0;
    const many = rising.findIndex((value) => (sum += value) > values[worst]);
    const alike = many > 1 ? `, as much as the ${many} least sensitive layers` : "";
    const act = figuresAt.width ? "Rounding" : "Pruning";
    return `${act} only ${layer} to ${figuresAt.short} costs ${number(values[worst], 2)} nats${alike}`;
  }
}

export class LayerPanel {
  /** @param {HTMLElement} card */
  constructor(card) {
    this.title = find(card, "h2");
    this.legend = find(card, ".workbench-legend");
    this.buttons = card.querySelectorAll("button[data-value]");
    const [whole, group] = card.querySelectorAll(".workbench-canvas");
    this.boxes = [whole, group];
    this.canvas = find(whole, "canvas", HTMLCanvasElement);
    this.histogram = new HistogramChart(
      this.canvas,
      find(whole, "output"),
      { brush: () => {}, clear: () => {} },
      200,
    );
    this.combCanvas = find(group, "canvas", HTMLCanvasElement);
    this.comb = new Comb(this.combCanvas, find(group, "output"));
  }

  /** @param {View} view @param {string} why it is drawn @param {number} height */
  draw(view, why, height) {
    const { tensor, layer, bell } = view;
    const missing = tensor === null || typeof tensor === "string";
    this.canvas.hidden = this.combCanvas.hidden = missing;
    this.boxes.forEach((box, i) => box.toggleAttribute("hidden", Boolean(bell) !== Boolean(i)));
    for (const each of this.buttons)
      each.setAttribute("aria-pressed", String(each.getAttribute("data-value") === bell));
    if (missing || tensor.name !== layer.name) {
      this.title.textContent =
        typeof tensor === "string" ? `${layer.label}: ${tensor}` : layer.label;
      return;
    }
    if (bell) this.#group(view, tensor);
    else this.#whole(view, tensor, !STEADY.includes(why), height);
  }

  /** @param {View} view @param {import("./tensor.js").DenseTensor} tensor */
  #group(view, tensor) {
    const form = view.formats[view.focus];
    this.legend.textContent = "";
    this.comb.draw({
      tensor,
      form,
      size: (form.width ? form.group : view.group) || tensor.columns,
      score: view.score,
      color: form.color ?? view.model.colors.unchanged,
      height: this.boxes[1].clientHeight,
      told: (words) => {
        this.title.textContent = this.combCanvas.dataset.words = words;
      },
    });
  }

  /** @param {View} view @param {import("./tensor.js").DenseTensor} tensor @param {boolean} moves @param {number} height */
  #whole(view, tensor, moves, height) {
    const { layer, exact, model } = view;
    const form = view.formats[view.focus];
    const isExact = exact?.name === layer.name && exact.state === view.address && !view.holding;
    const made = isExact ? exact : tensor.histogram(form, view.score);
    const stage = { main: true, pruned: false, dash: "solid", perplexity: null };
    const stages = [
      { ...stage, name: "dense", label: "Dense", color: model.colors.dense },
      {
        ...stage,
        name: "live",
        label: form.label,
        short: form.short,
        color: form.color ?? model.colors.unchanged,
      },
    ];
    this.histogram.height = height;
    this.histogram.draw(
      {
        data: overlaid(tensor, layer, [tensor.whole, made], stages),
        t: 0,
        s: form === view.known.dense ? 0 : 1,
        shown: [0],
        other: null,
        log: false,
        brush: null,
      },
      moves,
    );
    const zeros = form.width ? made.tails[1] / made.tails[0] : 0; // a pattern is in the label
    const words = zeros > 5e-4 ? `, ${share(zeros)} zeros` : "";
    this.canvas.dataset.words = `${layer.label}: ${form.short}${words}`;
    tell(this.title, this.canvas.dataset.words);
    tell(this.legend, isExact ? "as a run makes it" : this.#instant(view, form, tensor));
  }

  /** Method of the preview, if a run computes other weights.
      @param {View} view @param {Format} form @param {import("./tensor.js").DenseTensor} tensor */
  #instant(view, form, tensor) {
    if (form.pattern && !view.isInstant("pruner"))
      return tensor.root ? "at once, by Wanda's score" : "at once, by magnitude in each row";
    return form.width && !view.isInstant("quantizer") ? "at once, rounded to nearest" : "";
  }
}

/** Writes the price of the format of the layer under the pointer, or of the one looked at, and that of its neighbors.
    @param {HTMLElement} box @param {View} view */
export function explain(box, view) {
  const { predictions, formats } = view;
  const t = view.hovered >= 0 ? view.hovered : view.focus;
  if (view.isDense && view.hovered < 0) {
    const budget = view.settings.front ? "Type a budget, or set" : "Set";
    box.textContent = `Nothing is compressed yet. ${budget} sparsity or bits.`;
    return;
  }
  const name = document.createElement("strong");
  name.textContent = `${view.layers[t].label}, ${formats[t].label}`;
  if (!predictions.run) {
    box.replaceChildren(name, ": a profile predicts its loss in each format.");
    return;
  }
  const others = predictions.alternatives(t, formats[t]).map(({ form, more, loss }) => {
    const size = `${megabytes(Math.abs(more))} ${more < 0 ? "less" : "more"}`;
    return `${form.label}: ${number(loss, 2)}\u00a0nats, ${size}`;
  });
  box.replaceChildren(
    name,
    loss(view, t),
    others.length ? ` Instead ${others.join("; ")}.` : "",
    view.pinned.has(t) ? " Pinned ◆." : "",
  );
}

/** Sentence on the loss of a layer, with its rank. @param {View} view @param {number} t */
function loss({ predictions, formats, known }, t) {
  if (formats[t] === known.dense) return " loses nothing.";
  const all = formats.map((form, i) => predictions.figure("predicted", i, form));
  const own = all[t];
  if (!Number.isFinite(own)) return " has no prediction in this format.";
  const rank = all.filter((each) => each > own).length + 1;
  const part = share(own / (predictions.totals(formats).loss || 1));
  return ` loses ${number(own, 2)} nats a token, ${part} of all, rank ${rank} of ${all.length}.`;
}

/* --- the table of all layers ---------------------------------------------------------------- */

/** One row per layer, largest loss first, in the format of the map. @param {View} view @returns {import("../weights/tables.js").Figures} */
function layerFigures({ layers, formats, predictions, figuresAt }) {
  const profiled = predictions.formats;
  const losses = profiled.map(({ text }) => `Loss at ${text}, nats`);
  const errors = profiled.map(({ text }) => `Output error at ${text}, %`);
  const heads = ["Layer", "Block", "Matrix", "Weights", "Format", "Bits a weight", "MB"];
  const rows = layers.map(({ name, block, module, rows: height, columns }, i) => {
    const form = formats[i];
    const at = (/** @type {Format} */ each) => predictions.figure("predicted", i, each);
    const error = (/** @type {Format} */ each) => 100 * predictions.figure("error", i, each);
    /** @type {(string | number)[]} */
    const state = [name, block < 0 ? "" : block, module, height * columns, form.text];
    const sizes = [bitsPerWeight(form, columns), predictions.nbytes(i, form) / 1e6];
    return {
      loss: at(figuresAt ?? form) || 0,
      row: [...state, ...sizes, at(form), error(form), ...profiled.map(at), ...profiled.map(error)],
    };
  });
  rows.sort((a, b) => b.loss - a.loss);
  const now = ["Loss, nats a token", "Output error, %"];
  return [[...heads, ...now, ...losses, ...errors], rows.map(({ row }) => row)];
}

/** Opens the table, with a button for CSV. @param {View} view */
export function showTable(view) {
  const dialog = window.slimscope.dialog("workbench-table", "");
  const close = window.slimscope.create("button", {
    type: "button",
    className: "small-button",
    textContent: "Close",
  });
  close.onclick = () => dialog.close();
  dialog.onclose = () => dialog.remove();
  dialog.append(close, table(layerFigures(view), `${view.model.model}-layers`));
  dialog.showModal();
}
