/* The Weights page: the toolbar and the panels, all of which draw one state. */
import { inks, lower, measureAgain, number, picture, stageInk, surface } from "./canvas.js";
import { VIEWS } from "./views.js";
import { HistogramChart } from "./histogram.js";
import { NoData, load } from "./histograms.js";
import { LayerMap } from "./map.js";
import { Ridges } from "./ridges.js";
import { Selection, asked, chosenStages, range } from "./state.js";
import { fileName, offer, saveAll, saveFigures, table } from "./tables.js";
import { ofDepth, ofHistogram, ofMap, shortName, tiles } from "./words.js";
/** @import {Range} from "./canvas.js" */
/** @import {Place} from "./histogram.js" */
/** @import {Choice, Histograms} from "./histograms.js" */
/** @import {Plot} from "./plots.js" */
/** @import {Field} from "./state.js" */
/** @import {Figures} from "./tables.js" */
/** @import {View} from "./views.js" */

/**
 * What the map draws: `stat` is the statistic, none for marked magnitudes.
 * @typedef {{label: string, unit: string, question: string, values: number[], stat?: string, even?: boolean, log?: boolean}} MapFigure
 */
/** @typedef {{words: string, color: string, dash: string}} LegendEntry */
/** @typedef {"heatmap" | "overlay" | "ridges" | "more"} PanelName */

const { create, find, findAll } = window.slimscope;
const MAX_STAGES = 4;
const LOG_FACTOR = 30; // a largest value so many times the median is drawn on a log scale
const FALLBACK_STATISTIC = "kurtosis"; // shown where a statistic is not measured
const STRIP_BINS = 64;
const STRIP_HEIGHT = 20;

const runOfAddress = () => new URLSearchParams(location.search).get("run") ?? "";

/** The run of the address, requested while Gradio starts. @type {Promise<Histograms> | null} */
let early = null;

/** Begins to load what the address asks for. */
export function ahead() {
  early ??= load(runOfAddress());
  early.catch(() => {});
  return early;
}

/**
 * Draws the page into its element.
 * @param {HTMLElement} element
 * @param {() => void} opened called when another run is shown
 */
export function start(element, opened) {
  const page = new Page(element, opened);
  Object.assign(window.slimscope, {
    openedRun: () => page.state.now.run,
    openRun: (/** @type {string} */ run) => {
      if (run && run !== page.state.now.run) page.open(run);
    },
    changed: () => page.refresh(),
    back: () => {
      page.restore();
      return true;
    },
    pin: () => {
      const { run, stage } = page.state.now;
      window.slimscope.address({ run, stage });
    },
  });
  page.show(ahead());
}

class Page {
  /** @type {Histograms | null} */
  #data = null;
  /** The run that is compared with. @type {Histograms | null} */
  other = null;
  hovered = -1;
  /** @type {(View & Plot) | null} */
  plot = null;
  /** @type {MapFigure | null} */
  drawnFigure = null;
  viewRequest = 0; // stale responses are dropped
  runRequest = 0;

  /**
   * @param {HTMLElement} element
   * @param {() => void} opened
   */
  constructor(element, opened) {
    this.element = element;
    this.opened = opened;
    this.state = new Selection(asked(location.search), (changed) => this.#changed(changed));
    /** @type {Record<string, [question: string, theory: string]>} */
    this.texts = JSON.parse(find(element, "[data-texts]").dataset.texts ?? "");
    this.all = find(element, ".weights-all");
    this.notice = find(element, "#weights-notice");
    this.slider = find(element, "#weights-step", HTMLInputElement);
    this.stops = find(element, "#weights-step + div");
    this.map = new LayerMap(this.canvas("heatmap"), {
      hover: (t) => {
        this.hovered = t;
        this.preview();
      },
      pick: (t) => this.pick(t),
    });
    this.histogram = new HistogramChart(
      this.canvas("overlay"),
      find(this.panel("overlay"), "output"),
      {
        brush: (low, high) => {
          const ends = [low, high].map((weight) => Number(weight.toPrecision(3)));
          this.state.set({ brush: ends.join("~") });
        },
        clear: () => this.state.set({ brush: "" }),
      },
    );
    this.ridges = new Ridges(this.canvas("ridges"), {
      stage: (s) => this.state.set({ stage: this.data.stages[s].name }),
    });
    this.#wire();
    const redraw = () => {
      if (this.#data) this.draw();
    };
    new ResizeObserver(() => {
      measureAgain();
      redraw();
    }).observe(element);
    new MutationObserver(redraw).observe(document.body, { attributeFilter: ["class"] });
  }

  /** @param {PanelName} name */
  panel(name) {
    return find(this.element, `#weights-${name}`);
  }

  /** @param {PanelName} name */
  canvas(name) {
    return find(this.panel(name), "canvas", HTMLCanvasElement);
  }

  /* --- the selection ------------------------------------------------------------------------- */

  get data() {
    if (!this.#data) throw new Error("No run is shown.");
    return this.#data;
  }
  get t() {
    return this.hovered >= 0 ? this.hovered : this.data.tensor(this.state.now.tensor);
  }
  get s() {
    return this.data.stage(this.state.now.stage);
  }

  /** Names of the stages drawn in the histogram. */
  get shownStages() {
    const chosen = chosenStages(this.state.now);
    if (chosen.length) return chosen;
    const { stages, main, overlaid } = this.data;
    return this.state.now.vs ? [stages[main[0]].name] : overlaid;
  }

  /**
   * The same in the other run, where it is recorded; what this run kept is compared with what the other one kept.
   * @type {(t: number, s: number) => Place | null}
   */
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

  /** @param {string} run */
  async open(run) {
    this.state.now.run = run;
    await this.show(load(run));
    this.state.write();
  }

  /** Shows a run that is being loaded, or why there is none. @param {Promise<Histograms>} coming */
  async show(coming) {
    const request = ++this.runRequest;
    try {
      const data = await coming;
      if (request !== this.runRequest) return;
      this.#data = data;
      this.hovered = -1;
      this.state.settle(data);
      const { now } = this.state;
      this.other = now.vs ? await load(now.vs).catch(() => null) : null;
      if (!this.other) now.vs = "";
      this.notice.replaceChildren();
      this.all.hidden = false;
      this.#fill();
      this.draw();
      this.opened();
    } catch (error) {
      if (error instanceof NoData) {
        if (request === this.runRequest) await this.#showReason(error);
      } else {
        this.notice.textContent = `The histograms could not be shown. ${error}`;
        console.error(error);
      }
    }
  }

  /** Shows why a run has no data, and offers the others. @param {NoData} reason */
  async #showReason({ html, message }) {
    this.all.hidden = true;
    if (html)
      this.notice.innerHTML = html; // escaped by the server
    else this.notice.textContent = message;
    const newest = await load("").catch(() => null);
    if (newest) this.#options("run", [["Choose a run", ""], ...newest.runs], "");
  }

  /** Asks if the run has moved on; a stage nobody has chosen gives way to the next. */
  async refresh() {
    const before = this.#data;
    const { run, stage } = this.state.now;
    const fresh = await load(before ? run : runOfAddress()).catch(() => null);
    if (!fresh || fresh.etag === before?.etag) return;
    if (before && this.state.now.run !== run) return;
    if (stage === this.state.defaults.stage) this.state.now.stage = "";
    await this.show(Promise.resolve(fresh));
  }

  /** Takes the state of the address. */
  restore() {
    const { now } = this.state;
    const wanted = asked(location.search);
    const isSameRun = wanted.run === this.#data?.run && wanted.vs === now.vs;
    Object.assign(now, wanted);
    if (!isSameRun) return this.show(load(wanted.run));
    this.state.settle(this.data);
    this.#fill();
    return this.draw();
  }

  /** @param {number} t */
  pick(t) {
    this.hovered = -1;
    this.state.set({ tensor: this.data.tensors[t].name });
    this.preview();
  }

  /** @param {Set<string>} changed */
  #changed(changed) {
    if (changed.has("run")) this.open(this.state.now.run);
    else if (changed.has("vs")) this.show(Promise.resolve(this.data));
    else if (changed.has("brush")) this.mark();
    else {
      if (changed.has("tensor")) this.state.now.spot = "";
      this.draw(true);
    }
  }

  /* --- panels -------------------------------------------------------------------------------- */

  /** Draws everything. @param {boolean} [moves] curves glide from what was drawn */
  draw(moves = false) {
    const { now } = this.state;
    const { data, t, s } = this;
    this.#controls();
    this.#drawMap();
    this.#drawHistogram(moves);
    this.#tiles();
    this.#legend();
    this.#strip();
    find(this.panel("ridges"), ".theory").hidden = data.stage("redense") < 0;
    if (now.view === "ridges") {
      this.ridges.draw(data, t, s, moves);
      const module = shortName(data.tensors[t].module);
      this.#say("ridges", ofDepth(module, this.ridges.widths()), this.ridges.note());
    }
    if (now.view === "statistics") this.#statistics();
    if (VIEWS[now.view]) this.#drawView();
    this.#openTables();
  }

  /** Draws what changes with the tensor under the pointer. */
  preview() {
    this.#drawMap();
    this.#drawHistogram(false);
    this.#tiles();
    this.#strip();
    const entries = findAll(this.panel("overlay"), ".weights-entry"); // only their zeros change
    this.histogram.legend().forEach(({ words }, i) => {
      if (entries[i]) entries[i].textContent = words;
    });
  }

  /** Draws what changes with the marked magnitudes. */
  mark() {
    this.#controls();
    this.#drawMap();
    this.#drawHistogram(false);
    this.#openTables();
  }

  /** @param {boolean} moves */
  #drawHistogram(moves) {
    const { data, t, s, other } = this;
    const { now } = this.state;
    const twin = this.twin(t, s);
    this.histogram.draw(
      {
        data,
        t,
        s,
        shown: this.shownStages.map((name) => data.stage(name)),
        other: twin,
        curve: now.curve,
        log: now.y === "log",
        brush: range(now.brush),
      },
      moves,
    );
    const notes = [this.histogram.note()];
    if (now.vs && !twin) notes.push(`${now.vs} has not recorded this tensor at this stage.`);
    if (other && other.model !== data.model)
      notes.push(`${now.vs} has another model, ${other.model}.`);
    const panel = this.panel("overlay");
    const title = `${data.tensors[t].label} · ${ofHistogram(data, t, s)}`;
    this.#say("overlay", title, notes.join(" "));
    find(panel, ".theory").hidden = !(data.cutoff(t, s) > 0); // it is about the dotted lines
    find(panel, ".question").title = this.histogram.details();
  }

  /** Draws a view of profiles, which are fetched. */
  async #drawView() {
    const { data, t, s } = this;
    const now = { ...this.state.now };
    const request = ++this.viewRequest;
    const chosen = chosenStages(now).map((name) => data.stage(name));
    const view = await VIEWS[now.view]({
      now,
      data,
      t,
      s,
      drawn: chosen.length ? chosen : [...new Set([data.main[0], s])],
      twin: (...place) => this.twin(...place),
    }).catch((/** @type {Error} */ error) => `It could not be loaded: ${error.message}`);
    if (request !== this.viewRequest) return;
    const panel = this.panel("more");
    const canvas = this.canvas("more");
    const [question, theory] = this.texts[now.view];
    const isDrawn = typeof view !== "string";
    panel.classList.toggle("without", !isDrawn);
    this.plot = isDrawn ? { ...view, ...view.draw(canvas) } : null;
    const scale = this.plot?.scale ? ` Colors: ${this.plot.scale}.` : "";
    this.#say("more", isDrawn ? view.title : view, isDrawn ? view.note + scale : "", question);
    const isPruned = data.cutoff(t, s) > 0;
    find(panel, ".theory").textContent = theory;
    find(panel, ".theory").hidden = now.view === "magnitudes" && !isPruned; // it is about pruning
    const lines = this.plot?.legend ?? [];
    this.#entries(
      panel,
      lines.map(({ label, color, dash }) => ({ words: label, color, dash })),
    );
    canvas.style.cursor = this.plot?.pick ? "pointer" : "default";
    if (this.plot) this.#openTables(panel);
  }

  /** A statistic was measured at a stage. @type {(name: string, s: number) => boolean} */
  isMeasured(name, s) {
    return this.data.tensors.some((_, t) => Number.isFinite(this.data.value(name, t, s)));
  }

  /** @returns {MapFigure} */
  mapFigure() {
    const { data, s } = this;
    const { now } = this.state;
    const brush = range(now.brush);
    if (brush) return this.#markedFigure(brush);
    const statistic =
      data.statistics.find(({ name }) => name === now.stat && this.isMeasured(name, s)) ??
      data.statistics.find(({ name }) => name === FALLBACK_STATISTIC) ??
      data.statistics[0];
    const { name: stat, label, question, percent } = statistic;
    const values = data.tensors.map((_, t) => data.shown(stat, t, s));
    const twin = this.#baseline();
    if (!twin) {
      const sizes = values.filter(Number.isFinite).sort((a, b) => a - b);
      const median = sizes[sizes.length >> 1];
      const log = sizes[0] > 0 && sizes[sizes.length - 1] > LOG_FACTOR * median;
      return { stat, label, unit: percent ? " %" : "", log, question, values };
    }
    const base = now.against === "run" ? now.vs : "dense";
    return {
      stat,
      label: `Difference in ${lower(label)} to ${base}`,
      unit: percent ? " points" : "",
      even: true,
      question: `Where does ${lower(label)} differ from ${base}? No color: no difference.`,
      values: values.map((value, t) => {
        const place = twin(t);
        return place ? value - place.data.shown(stat, place.t, place.s) : NaN;
      }),
    };
  }

  /** Places that the map is compared with, by tensor; null without a comparison. */
  #baseline() {
    const { data, s } = this;
    const { against } = this.state.now;
    const dense = data.stage("dense");
    if (against === "run" && this.other) return (/** @type {number} */ t) => this.twin(t, s);
    if (against !== "dense" || s === dense) return null;
    return (/** @type {number} */ t) => (dense < 0 ? null : { data, t, s: dense });
  }

  /** Share of the weights in the marked range. @type {(brush: Range) => MapFigure} */
  #markedFigure(brush) {
    const { data, s } = this;
    const [low, high] = brush;
    return {
      label: low
        ? `Weights with magnitudes from ${number(low)} to ${number(high)}`
        : `Weights with magnitudes below ${number(high)}`,
      unit: " %",
      question: "Where do the weights live that are marked in the histogram?",
      values: data.tensors.map((_, t) => (data.has(t, s) ? 100 * data.within(t, s, brush) : NaN)),
    };
  }

  #drawMap() {
    const { data, s, hovered } = this;
    const { now } = this.state;
    const figure = this.mapFigure();
    const { label, unit, values, stat, question } = figure;
    const stage = data.stages[s].label;
    this.drawnFigure = figure;
    const select = find(this.element, '[data-state="stat"]', HTMLSelectElement);
    select.value = stat ?? now.stat; // what is drawn
    select.disabled = !stat;
    for (const option of select.options) option.disabled = !this.isMeasured(option.value, s);
    this.map.draw({ data, ...figure, picked: data.tensor(now.tensor) });
    const panel = this.panel("heatmap");
    find(panel, "output").textContent =
      hovered < 0 ? "" : `${data.tensors[hovered].label}: ${number(values[hovered])}${unit}`;
    find(panel, ".theory").hidden = stat !== "relative_error"; // it is about what layers bear
    const wanted = data.statistics.find(({ name }) => name === now.stat);
    const isOther = stat && stat !== now.stat;
    const why = isOther ? `${wanted?.label} is not measured at stage ${stage}; ` : "";
    const missing = values.filter((value) => !Number.isFinite(value)).length;
    const without = missing ? `, ${missing} without a value` : "";
    const note = `${stage}, n = ${data.tensors.length} matrices${without}.`;
    this.#say("heatmap", ofMap(data, label, unit, values, why), note, question);
  }

  /** Title, note and question of a panel. @type {(name: PanelName, title: string, note: string, question?: string) => void} */
  #say(name, title, note, question) {
    const panel = this.panel(name);
    const [questionLine, noteLine] = findAll(panel, ".question span");
    find(panel, "h2").textContent = title;
    noteLine.textContent = note;
    if (question) questionLine.textContent = question;
  }

  /** The tensor at every stage, small, above the slider. */
  #strip() {
    const { data, t } = this;
    const ink = inks();
    const reach = data.reach(t, data.main);
    const [from, to] = data.range(t);
    const most = Math.max(...data.heights(t, data.main[0], STRIP_BINS), 0.01) * 1.2;
    findAll(this.stops, "canvas", HTMLCanvasElement).forEach((canvas, s) => {
      const { pen, width } = surface(canvas, STRIP_HEIGHT);
      const x = (/** @type {number} */ bin) =>
        ((from + (bin * (to - from)) / STRIP_BINS + reach) / (2 * reach)) * width;
      pen.fillStyle = ink.stage(data.stages[s].color);
      data.heights(t, s, STRIP_BINS).forEach((height, bin) => {
        const top = STRIP_HEIGHT * (1 - Math.min(1, height / most));
        pen.fillRect(x(bin), top, Math.max(1, x(bin + 1) - x(bin)), STRIP_HEIGHT);
      });
    });
  }

  #tiles() {
    const elements = tiles(this.data, this.t, this.s).map(([name, value, sentence]) => {
      const tile = create("div");
      tile.append(
        create("dt", { textContent: name }),
        create("dd", { textContent: value }),
        create("dd", { textContent: sentence }),
      );
      return tile;
    });
    find(this.element, ".weights-tiles").replaceChildren(...elements);
  }

  /** The legend of the histogram, with a list that adds and removes stages. */
  #legend() {
    const { data, shownStages } = this;
    const { stage } = this.state.now;
    const added = data.stages.filter(({ name }) => !shownStages.includes(name) && name !== stage);
    const removed = data.stages.filter(({ name }) => shownStages.includes(name) && name !== stage);
    const list = create("select", { ariaLabel: "Add or remove a stage" });
    list.append(
      new Option("Stages …", ""),
      ...added.map(({ name, label }) => new Option(`Add ${label}`, name)),
      ...removed.map(({ name, label }) => new Option(`Remove ${label}`, name)),
    );
    list.onchange = () => {
      const others = shownStages.filter((name) => name !== list.value);
      const isRemoved = others.length < shownStages.length;
      const stages = isRemoved ? others : [...shownStages, list.value].slice(-MAX_STAGES);
      this.state.set({ show: stages.join(",") || stage });
    };
    this.#entries(this.panel("overlay"), this.histogram.legend(), list);
  }

  /** The lines of a panel. @type {(panel: HTMLElement, lines: LegendEntry[], ...others: Element[]) => void} */
  #entries(panel, lines, ...others) {
    const entries = lines.map(({ words, color, dash }) => {
      const entry = create("span", { className: "weights-entry", textContent: words });
      entry.style.setProperty("--stage", stageInk(color));
      entry.dataset.dash = dash;
      return entry;
    });
    const box = find(panel, ".weights-legend");
    if (!box.contains(document.activeElement)) box.replaceChildren(...entries, ...others);
  }

  /** Every statistic of the tensor, a column for each stage. */
  #statistics() {
    const { data, t } = this;
    const { name } = data.tensors[t];
    const heads = ["Figure", ...data.stages.map(({ label }) => label)];
    const rows = data.statistics.map(({ name, label, percent }) => [
      percent ? `${label}, %` : label,
      ...data.stages.map((_, s) => data.shown(name, t, s)),
    ]);
    const box = find(this.element, "#weights-table > div");
    box.replaceChildren(table([heads, rows], `${data.run}-${name}`));
    if (!data.groups) return;
    const query = new URLSearchParams({ run: data.run, tensor: name });
    const line = create("p");
    line.append(
      create("a", { href: `quantization?${query}`, textContent: "Its groups in Quantization" }),
    );
    box.append(line);
  }

  /** Fills the data tables that are open. @param {HTMLElement} [panel] of this one only */
  #openTables(panel = this.element) {
    for (const details of findAll(panel, ".weights-panel details.card-data[open]"))
      this.#fillTable(details);
  }

  /** @param {HTMLElement} details */
  #fillTable(details) {
    const figures = this.#figures(details);
    if (figures) find(details, "div").replaceChildren(table(...figures));
  }

  /** Figures and file name of the panel around an element. @type {(part: Element) => [Figures, string] | null} */
  #figures(part) {
    const { data, t, s } = this;
    const { now } = this.state;
    const { id } = part.closest(".weights-panel") ?? {};
    const file = `${data.run}-${now.tensor}`;
    if (id === "weights-overlay") return [this.histogram.table(), `${file}-${now.curve}`];
    if (id === "weights-more")
      return this.plot && [this.plot.table, `${data.run}-${this.plot.file}`];
    if (id === "weights-ridges") {
      const { module } = data.tensors[t];
      return [this.ridges.table(), `${data.run}-${now.stage}-${module}-ridges`];
    }
    if (!this.drawnFigure) return null;
    const { label, unit, values } = this.drawnFigure;
    const heads = ["Tensor", "Block", "Weights", unit ? `${label}, ${unit.trim()}` : label];
    const rows = data.tensors.map(({ name, block }, tensor) => [
      name,
      String(block),
      data.tail(tensor, s).n,
      values[tensor],
    ]);
    return [[heads, rows], `${data.run}-${now.stage}-${now.stat}`];
  }

  /* --- controls ------------------------------------------------------------------------------ */

  /** Fills what depends on the run. */
  #fill() {
    const { data, other } = this;
    const { now } = this.state;
    const others = data.runs.filter(([, run]) => run !== now.run);
    /** @type {Choice[]} */
    const against = [["Nothing", ""]];
    if (data.stage("dense") >= 0) against.push(["Dense", "dense"]);
    if (other) against.push(["Other run", "run"]);
    /** @type {(each: {name: string, label: string}) => Choice} */
    const choice = ({ name, label }) => [label, name];
    this.#options("run", data.runs, now.run);
    this.#options("vs", [["Compare with …", ""], ...others], now.vs);
    this.#options("tensor", data.tensors.map(choice), now.tensor);
    this.#options("stat", data.statistics.map(choice), now.stat);
    this.#options("against", against, now.against);
    this.slider.max = String(data.stages.length - 1);
    this.slider.parentElement?.style.setProperty("--stages", String(data.stages.length));
    this.stops.replaceChildren(
      ...data.stages.map(({ name, label, perplexity, color }) => {
        const stop = create("button", {
          type: "button",
          tabIndex: -1,
          title: perplexity ? `${label}: perplexity ${number(perplexity, 4)}` : label,
        });
        stop.append(create("canvas"), label);
        stop.style.setProperty("--stage", stageInk(color));
        stop.onclick = () => {
          this.state.set({ stage: name });
          this.slider.focus();
        };
        return stop;
      }),
    );
  }

  /** @type {(field: Field, choices: Choice[], value: string) => void} */
  #options(field, choices, value) {
    const select = find(this.element, `[data-state="${field}"]`, HTMLSelectElement);
    offer(select, choices, value);
  }

  /** Shows the state in the controls. */
  #controls() {
    const { element, data, s } = this;
    const { now } = this.state;
    const brush = range(now.brush);
    for (const select of findAll(element, "[data-state]", HTMLSelectElement)) {
      const value = now[/** @type {Field} */ (select.dataset.state)];
      if (select.value !== value) select.value = value;
    }
    this.slider.value = String(s);
    this.slider.setAttribute("aria-valuetext", data.stages[s].label);
    [...this.stops.children].forEach((stop, i) =>
      stop.setAttribute("aria-pressed", String(i === s)),
    );
    for (const button of findAll(element, "[data-view]"))
      button.setAttribute("aria-pressed", String(button.dataset.view === now.view));
    for (const option of findAll(element, "[data-of]"))
      option.hidden = option.dataset.of !== now.view || ("whole" in option.dataset && !now.spot);
    findAll(element, "[data-brush]", HTMLInputElement).forEach((input, i) => {
      if (input !== document.activeElement) input.value = brush ? String(brush[i]) : "";
    });
    find(element, "[data-clear]").hidden = !brush;
    this.panel("ridges").hidden = now.view !== "ridges";
    this.panel("more").hidden = !VIEWS[now.view];
    find(element, "#weights-table").hidden = now.view !== "statistics";
  }

  #wire() {
    /** @type {(selector: string, event: string, act: (each: HTMLElement) => void) => void} */
    const on = (selector, event, act) => {
      for (const each of findAll(this.element, selector))
        each.addEventListener(event, () => act(each));
    };
    this.slider.oninput = () =>
      this.state.set({ stage: this.data.stages[Number(this.slider.value)].name });
    for (const select of findAll(this.element, "[data-state]", HTMLSelectElement))
      select.onchange = () => this.state.set({ [select.dataset.state ?? ""]: select.value });
    on("[data-view]", "click", ({ dataset }) => this.state.set({ view: dataset.view }));
    on("[data-tensor]", "click", ({ dataset }) => {
      const t = this.data.tensor(this.state.now.tensor) + Number(dataset.tensor);
      const next = this.data.tensors[t];
      if (next) this.state.set({ tensor: next.name });
    });
    on("[data-brush]", "change", () => {
      const inputs = findAll(this.element, "[data-brush]", HTMLInputElement);
      const [low, high] = inputs.map((input) => input.value.replace(",", "."));
      const brush = `${low || 0}~${high}`;
      this.state.set({ brush: high && range(brush) ? brush : "" });
    });
    on("[data-clear]", "click", () => this.state.set({ brush: "" }));
    on("[data-whole]", "click", () => this.state.set({ spot: "" }));
    for (const button of findAll(this.element, "[data-play]", HTMLButtonElement))
      button.onclick = () => {
        button.disabled = true;
        this.ridges.play(() => {
          button.disabled = false;
        });
      };
    on(".weights-panel details.card-data", "toggle", (details) => {
      if (details.hasAttribute("open")) this.#fillTable(details);
    });
    on("[data-save]", "click", (button) => this.#save(button, button.dataset.save ?? ""));
    on("[data-full]", "click", (button) => window.slimscope.fullScreen(button.closest(".card")));
    on("#weights-save", "click", () => saveAll(this.data));
    this.#wireView();
  }

  /** The pointer on a view of profiles. */
  #wireView() {
    const canvas = this.canvas("more");
    const output = find(this.panel("more"), "output");
    canvas.onpointermove = (event) => {
      output.textContent = this.plot?.at(event)?.words ?? "";
    };
    canvas.onpointerleave = () => {
      output.textContent = "";
    };
    canvas.onclick = (event) => {
      const place = this.plot?.at(event);
      if (place && this.plot?.pick) this.state.set(this.plot.pick(place));
    };
  }

  /** @type {(button: HTMLElement, format: string) => void} */
  #save(button, format) {
    const panel = button.closest(".weights-panel");
    const figures = this.#figures(button);
    if (!panel || !figures) return;
    find(panel, "details.save", HTMLDetailsElement).open = false;
    const [, name] = figures;
    const save = (/** @type {Blob} */ file) =>
      window.slimscope.save(`${fileName(name)}.${format}`, [file], file.type);
    if (format === "png") {
      const question = find(panel, ".question");
      const caption = `${question.textContent} ${question.title}`;
      const title = find(panel, "h2").textContent;
      picture(find(panel, "canvas", HTMLCanvasElement), title, caption, save);
    } else if (format === "webm") this.ridges.film(save);
    else if (format === "csv") saveFigures(...figures);
    else window.slimscope.share(panel.id);
  }
}
