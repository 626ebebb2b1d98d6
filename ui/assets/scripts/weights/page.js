/* The page *Weights*: toolbar and panels, which all show the same state. */
import { lower, measureAgain, number, picture, stageInk, still, tween, widthOf } from "./canvas.js";
import { VIEWS } from "./views.js";
import { Comparison } from "./comparison.js";
import { mapFigure } from "./figure.js";
import { GroupsLens } from "./groups.js";
import { HistogramChart } from "./histogram.js";
import { NoData, load } from "./histograms.js";
import { LayerMap } from "./map.js";
import { readOut } from "./plots.js";
import { Rail } from "./rail.js";
import { Ridges } from "./ridges.js";
import { Selection, asked, chosenStages, range } from "./state.js";
import { fileName, offer, saveAll, saveFigures, table } from "./tables.js";
import { figures, ofAllLayers, ofEffect, ofHistogram, ofMap, shortName } from "./words.js";
/** @import {MapFigure} from "./figure.js" */
/** @import {Place} from "./histogram.js" */
/** @import {Choice, Histograms} from "./histograms.js" */
/** @import {Plot} from "./plots.js" */
/** @import {Field} from "./state.js" */
/** @import {Figures} from "./tables.js" */
/** @import {View} from "./views.js" */

/** @typedef {"heatmap" | "overlay" | "ridges" | "more" | "groups"} PanelName */

const { create, find, findAll } = window.slimscope;
const MAX_STAGES = 5;
const NAMED_CELLS = 3;
const HISTOGRAM_HEIGHT = 240;
const STRIP_HEIGHT = 92;
const MAP_HEIGHT = 340;
const FULL_MARGIN = 150; // pixels of a full screen that are no chart
const MOVE_MS = 450;
const PLAY_MS = 1300;
const REST_MS = 450;

const runOfAddress = () => new URLSearchParams(location.search).get("run") ?? "";

/** The run of the address, requested while Gradio starts. @type {Promise<Histograms> | null} */
let early = null;

/** Starts to load the run of the address. */
export function ahead() {
  early ??= load(runOfAddress());
  early.catch(() => {});
  return early;
}

/** Draws the page into its element. @param {HTMLElement} element */
export function start(element) {
  const page = new Page(element);
  Object.assign(window.slimscope, {
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
  /** The other run of a comparison. @type {Histograms | null} */
  other = null;
  hovered = -1;
  /** Stage shown while a key is held; -1 for none. */
  held = -1;
  /** @type {(View & Plot) | null} */
  plot = null;
  /** @type {{key: string, figure: MapFigure} | null} */
  mapped = null;
  drawnStage = -1;
  isPlaying = false;
  viewRequest = 0; // stale responses are dropped
  runRequest = 0;
  stop = () => {};

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.state = new Selection(asked(location.search), (changed) => this.#changed(changed));
    /** @type {Record<string, [question: string, theory: string]>} */
    this.texts = JSON.parse(find(element, "[data-texts]").dataset.texts ?? "");
    this.all = find(element, ".weights-all");
    this.notice = find(element, "#weights-notice");
    this.rail = new Rail(find(element, "#weights-rail"), {
      stop: (s, step) =>
        this.state.set({
          stage: this.data.stages[s].name,
          step: step === null ? "" : String(step),
        }),
      scrub: (place, ends) => this.scrub(place, ends),
    });
    const look = (/** @type {number} */ t) => {
      if (t === this.hovered || this.isPlaying) return;
      this.hovered = this.map.hovered = t;
      this.preview();
    };
    this.map = new LayerMap(this.canvas("heatmap"), { hover: look, pick: (t) => this.pick(t) });
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
    this.ridges = new Ridges(this.canvas("ridges"), { hover: look, pick: (t) => this.pick(t) });
    this.lens = new GroupsLens(this.panel("groups"), (parts) => this.state.set(parts));
    this.#wire();
    this.#keys();
    const redraw = () => {
      measureAgain();
      if (this.#data) this.draw();
    };
    new ResizeObserver(redraw).observe(element);
    document.addEventListener("fullscreenchange", redraw);
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

  /** Height of a panel's chart; in full screen, the available height. @type {(name: PanelName, usual?: number) => number | undefined} */
  #heightOf(name, usual) {
    const isFull = document.fullscreenElement === this.panel(name);
    return isFull ? Math.max(usual ?? 0, window.innerHeight - FULL_MARGIN) : usual;
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
    return this.held >= 0 ? this.held : this.data.stage(this.state.now.stage);
  }

  /** Names of the stages drawn in the histogram. */
  get shownStages() {
    const chosen = chosenStages(this.state.now);
    if (chosen.length) return chosen;
    const { stages, main } = this.data;
    const { data, s } = this.comparison.reference(this.t, this.s);
    const places = data === this.data ? [main[0], s] : [main[0]];
    return [...new Set(places)].map((place) => stages[place].name);
  }

  get comparison() {
    return new Comparison(this.data, this.other, this.data.stage(this.state.now.vs));
  }

  /** @param {string} run */
  async open(run) {
    this.state.now.run = run;
    await this.show(load(run));
    this.state.write();
  }

  /** Shows a run once it is loaded, or the reason why it is not available. @param {Promise<Histograms>} coming */
  async show(coming) {
    const request = ++this.runRequest;
    try {
      const data = await coming;
      if (request !== this.runRequest) return;
      this.#data = data;
      this.hovered = this.map.hovered = -1;
      this.drawnStage = -1;
      this.notice.textContent = this.state.settle(data);
      const { now } = this.state;
      const isRun = now.vs && data.stage(now.vs) < 0;
      this.other = isRun ? await load(now.vs).catch(() => null) : null;
      if (isRun && this.other?.model !== data.model) {
        this.notice.textContent = this.other
          ? `Cannot compare: ${now.vs} has another model, ${this.other.model}.`
          : `Cannot compare: no weights of ${now.vs.slice(0, 60)}.`;
        this.other = null;
        now.vs = "";
      }
      this.all.hidden = false;
      this.#fill();
      this.draw();
    } catch (error) {
      if (error instanceof NoData) {
        if (request === this.runRequest) await this.#showReason(error);
      } else {
        this.notice.textContent = `The histograms could not be shown. ${error} Reload the page.`;
        console.error(error);
      }
    }
  }

  /** Shows why a run has no data, and links to other runs. @param {NoData} reason */
  async #showReason({ html, message }) {
    this.all.hidden = true;
    if (html)
      this.notice.innerHTML = html; // escaped by the server
    else this.notice.textContent = message;
    const newest = await load("").catch(() => null);
    if (newest) this.#options("run", [["Choose a run", ""], ...runsOf(newest)], "");
  }

  /** Checks for new data of the run; the default stage follows the newest one. */
  async refresh() {
    const before = this.#data;
    const { run, stage } = this.state.now;
    const fresh = await load(before ? run : runOfAddress()).catch(() => null);
    if (!fresh || fresh.etag === before?.etag) return;
    if (before && this.state.now.run !== run) return;
    if (stage === this.state.defaults.stage) this.state.now.stage = "";
    await this.show(Promise.resolve(fresh));
  }

  /** Reads the state from the address. */
  restore() {
    const { now } = this.state;
    const wanted = asked(location.search);
    const isSameRun = wanted.run === this.#data?.run && wanted.vs === now.vs;
    Object.assign(now, wanted);
    if (!isSameRun) return this.show(load(wanted.run));
    this.notice.textContent = this.state.settle(this.data);
    this.#fill();
    return this.draw();
  }

  /** @param {number} t */
  pick(t) {
    this.hovered = this.map.hovered = -1;
    this.state.set({ tensor: this.data.tensors[t].name });
    this.preview();
  }

  /** @param {Set<string>} changed */
  #changed(changed) {
    this.stop();
    if (changed.has("run")) this.open(this.state.now.run);
    else if (changed.has("vs")) this.show(Promise.resolve(this.data));
    else if (changed.has("brush")) {
      this.#controls();
      this.preview();
      this.#openTables();
    } else {
      if (changed.has("tensor")) this.state.now.spot = "";
      this.draw(true);
    }
  }

  /* --- motion -------------------------------------------------------------------------------- */

  /** Shows a place between the main stages. @param {number} place from 0 @param {boolean} ends it stays at the nearest stage */
  scrub(place, ends) {
    const { main, stages } = this.data;
    if (main.length < 2) return;
    const i = Math.min(Math.floor(place), main.length - 2);
    this.stop();
    if (!ends) return this.#between(main[i], main[i + 1], place - i);
    this.drawnStage = -1;
    this.state.now.stage = stages[main[Math.round(place)]].name;
    this.draw();
    this.state.write();
  }

  /** Plays the main stages, or in the view of groups the training steps. */
  play() {
    const { main, stages } = this.data;
    const steps = this.state.now.view === "groups" && this.lens.groups?.head.steps;
    const last = (steps ? steps.length : main.length) - 1;
    if (this.isPlaying || last < 1) return;
    const button = find(this.element, "[data-play]", HTMLButtonElement);
    const begin = performance.now();
    let reached = -1;
    let frame = 0;
    const finish = () => {
      cancelAnimationFrame(frame);
      this.isPlaying = false;
      button.textContent = "▶ Play";
      this.stop = () => {};
      this.state.write();
    };
    /** @param {number} now */
    const step = (now) => {
      const at = Math.max(0, now - begin) / (PLAY_MS + REST_MS);
      const i = Math.min(last, Math.floor(at));
      if (i !== reached) {
        if (steps) this.state.now.step = String(steps[i]);
        else this.state.now.stage = stages[main[i]].name;
        this.draw();
        reached = i;
      }
      const part = ((at - i) * (PLAY_MS + REST_MS) - REST_MS) / PLAY_MS;
      if (i < last && part > 0 && !steps && !still()) this.#between(main[i], main[i + 1], part);
      if (i < last) frame = requestAnimationFrame(step);
      else finish();
    };
    this.stop();
    if (steps) this.lens.replay();
    this.isPlaying = true;
    button.textContent = "■ Stop";
    this.stop = finish;
    step(begin);
  }

  /** Paints map, histogram and ridges a part of the way between two stages. @type {(from: number, to: number, part: number) => void} */
  #between(from, to, part) {
    this.#paintMap(from, to, part);
    this.#paintHistogram(from, to, part);
    this.#paintRidges(from, to, part);
    this.drawnStage = part < 0.5 ? from : to;
  }

  /* --- panels -------------------------------------------------------------------------------- */

  /** Draws everything. @param {boolean} [moves] charts glide from the stage that was drawn */
  draw(moves = false) {
    const { now } = this.state;
    const { s, drawnStage } = this;
    if (!this.isPlaying) this.stop();
    this.#controls();
    // at once: each drawing makes the next measurement lay out the page again
    findAll(this.element, "canvas", HTMLCanvasElement).forEach(widthOf);
    if (moves && drawnStage >= 0 && drawnStage !== s)
      this.stop = tween((part) => {
        this.#between(drawnStage, s, part);
        if (part === 1) this.#sayHistogram();
      }, MOVE_MS);
    else this.#between(s, s, 1);
    this.drawnStage = s;
    this.#describe();
    this.#legend();
    if (now.view === "ridges") this.#sayRidges();
    if (VIEWS[now.view]) this.#drawView();
    if (now.view === "groups") this.#drawGroups();
    this.#openTables();
  }

  /** Draws the parts that depend on the hovered tensor or on the marked magnitudes. */
  preview() {
    this.stop();
    this.#between(this.s, this.s, 1);
    this.#describe();
  }

  /** Texts of the drawn charts. */
  #describe() {
    const { data, t, s } = this;
    this.#sayMap();
    this.#sayHistogram();
    this.#effect();
    this.rail.draw(data, t, s, this.#step());
  }

  /** @type {(from: number, to: number, part: number) => void} */
  #paintRidges(from, to, part) {
    const { data, t } = this;
    if (this.state.now.view !== "ridges") return;
    this.ridges.draw({ data, t, from, to, part, height: this.#heightOf("ridges") });
  }

  /** @type {(from: number, to: number, part: number) => void} */
  #paintHistogram(from, to, part) {
    const { data, t } = this;
    const { now } = this.state;
    const height = this.#heightOf("overlay", HISTOGRAM_HEIGHT + STRIP_HEIGHT) ?? 0;
    this.histogram.height = height - STRIP_HEIGHT;
    this.histogram.draw(
      {
        data,
        t,
        s: to,
        shown: this.shownStages.map((name) => data.stage(name)),
        other: this.comparison.twin(t, to),
        log: now.y === "log",
        brush: range(now.brush),
        from,
        part,
      },
      false,
    );
    const strip = find(this.element, "#weights-strip", HTMLCanvasElement);
    this.histogram.strip(strip, this.comparison.difference(t, to), STRIP_HEIGHT);
  }

  #sayHistogram() {
    const { data, t, s } = this;
    const panel = this.panel("overlay");
    const twin =
      this.other && !this.comparison.twin(t, s) ? `${this.other.run}: not recorded here.` : "";
    const note = [this.histogram.note(), twin].filter(Boolean).join(" ");
    this.#say("overlay", ofHistogram({ data, t, s }), note);
    find(panel, ".weights-theory").hidden = !(data.cutoff(t, s) > 0); // it is about the dotted lines
  }

  /** Headline of the page, and the statistics next to those of the reference. */
  #effect() {
    const { data, t, s, comparison } = this;
    const effect = comparison.effect(t, s);
    find(this.element, "#weights-effect").textContent = ofEffect(effect);
    const layers = ofAllLayers(effect, this.#sameOf());
    const words = [layers, effect.note].filter(Boolean).join(". ");
    find(this.element, "#weights-layers").textContent = data.model + (words && `: ${words}`);
    const parts = figures({ data, t, s }, comparison.reference(t, s), effect.rival).map(
      ([name, value, other]) => {
        const figure = create("div");
        figure.append(
          create("dt", { textContent: name }),
          create("dd", { textContent: value }),
          create("dd", { textContent: other }),
        );
        return figure;
      },
    );
    find(this.element, ".weights-figures").replaceChildren(...parts);
  }

  /** Same position for another tensor, optionally of one module only. @param {string} [module] */
  #sameOf(module) {
    const { data } = this;
    /** @type {(place: Place, t: number) => Place | null} */
    return (place, t) => {
      if (module && data.tensors[t].module !== module) return null;
      const other = place.data === data ? t : place.data.tensor(data.tensors[t].name);
      return other < 0 ? null : { ...place, t: other };
    };
  }

  #sayRidges() {
    const { data, t, s } = this;
    const { module } = data.tensors[t];
    const words = ofAllLayers(this.comparison.effect(t, s), this.#sameOf(module));
    const title = words || data.stages[s].label;
    this.#say("ridges", `${shortName(module)} in all blocks: ${lower(title)}`, this.ridges.note());
  }

  /** Fetches profiles and draws their view. */
  async #drawView() {
    const { data, t, s } = this;
    const now = { ...this.state.now };
    const request = ++this.viewRequest;
    const chosen = chosenStages(now).map((name) => data.stage(name));
    const reference = this.comparison.reference(t, s);
    const beside = now.vs && reference.data === data ? reference.s : data.main[0];
    const view = await VIEWS[now.view]({
      now,
      data,
      t,
      s,
      drawn: [...new Set(chosen.length ? [...chosen, s] : [beside, s])],
      twin: (...place) => this.comparison.twin(...place),
    }).catch((/** @type {Error} */ error) => `The view could not be loaded. ${error.message}`);
    if (request !== this.viewRequest) return;
    const panel = this.panel("more");
    const canvas = this.canvas("more");
    const [question, theory] = this.texts[now.view];
    const isDrawn = typeof view !== "string";
    panel.classList.toggle("without", !isDrawn);
    this.plot = isDrawn ? { ...view, ...view.draw(canvas, this.#heightOf("more")) } : null;
    const scale = this.plot?.scale ? ` Colors: ${this.plot.scale}.` : "";
    this.#say("more", isDrawn ? view.title : view, isDrawn ? view.note + scale : "", question);
    find(panel, ".weights-theory p").textContent = theory;
    find(panel, ".weights-legend").replaceChildren(
      ...(this.plot?.legend ?? []).map(({ label, color, dash }) =>
        entry("span", label, color, dash),
      ),
    );
    canvas.style.cursor = this.plot?.pick ? "pointer" : "default";
    if (this.plot) this.#openTables(panel);
  }

  /** Draws the group magnitudes, and adds their training steps to the rail. */
  async #drawGroups() {
    const { data, t, s } = this;
    const { step, group } = this.state.now;
    const request = ++this.viewRequest;
    const head = await this.lens.load(data, t, s);
    if (request !== this.viewRequest) return;
    const trained = head ? data.stage(head.stage) : -1;
    this.rail.fill(data, head && { s: trained, steps: head.steps });
    if (!head) return this.#say("groups", "No group magnitudes here", "");
    this.drawnStep = this.lens.draw(step, group, data.stages[trained].color);
    this.rail.draw(data, t, s, this.#step());
    const count = (head.rows * head.groups).toLocaleString("en");
    const note = `${head.format}. n = ${count} groups of ${data.tensors[t].label}.`;
    this.#say("groups", head.title, note);
    this.#openTables(this.panel("groups"));
  }

  /** Shown training step, if the view of groups is open at the trained stage. */
  #step() {
    const { view, step } = this.state.now;
    return view === "groups" && step && this.lens.groups ? (this.drawnStep ?? null) : null;
  }

  /** True if a statistic was measured at a stage. @type {(name: string, s: number) => boolean} */
  isMeasured(name, s) {
    return this.data.tensors.some((_, t) => Number.isFinite(this.data.value(name, t, s)));
  }

  /** Values of the map, cached until the selection changes. */
  get mapFigure() {
    const { stat, vs, brush } = this.state.now;
    const key = [this.data.etag, this.other?.etag, stat, vs, brush].join();
    if (this.mapped?.key !== key)
      this.mapped = { key, figure: mapFigure(this.comparison, stat, range(brush)) };
    return this.mapped.figure;
  }

  /** @type {(from: number, to: number, part: number) => void} */
  #paintMap(from, to, part) {
    const { data } = this;
    const figure = this.mapFigure;
    const end = figure.at(to);
    const start = part < 1 ? figure.at(from) : end;
    const values = end.map((value, t) =>
      Number.isFinite(value) && Number.isFinite(start[t])
        ? start[t] + (value - start[t]) * part
        : value,
    );
    const ranked = [...values.keys()].filter((t) => values[t]);
    ranked.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
    this.map.draw({
      ...figure,
      data,
      values,
      label: figure.rival ? `${figure.label} − ${figure.rival}` : figure.label,
      named: ranked.slice(0, NAMED_CELLS),
      picked: data.tensor(this.state.now.tensor),
      height: this.#heightOf("heatmap", MAP_HEIGHT),
    });
  }

  #sayMap() {
    const { data, s, hovered } = this;
    const { now } = this.state;
    const { label, unit, stat, question, rival, at } = this.mapFigure;
    const values = at(s);
    const select = find(this.element, '[data-state="stat"]', HTMLSelectElement);
    select.value = stat ?? now.stat; // what is drawn
    select.disabled = !stat;
    for (const option of select.options) option.disabled = !this.isMeasured(option.value, s);
    const panel = this.panel("heatmap");
    find(panel, "output").textContent =
      hovered < 0 ? "" : `${data.tensors[hovered].label}: ${number(values[hovered])}${unit}`;
    find(panel, ".weights-theory").hidden = stat !== "relative_error"; // it is about what layers bear
    const missing = values.filter((value) => !Number.isFinite(value)).length;
    const without = missing ? `, ${missing} without a value` : "";
    const note = `${data.stages[s].short}, n = ${data.tensors.length} matrices${without}. One scale for all stages; dotted: beyond it.`;
    this.#say("heatmap", ofMap(data, label, unit, values, rival), note, question);
  }

  /** Title, note and question of a panel. @type {(name: PanelName, title: string, note: string, question?: string) => void} */
  #say(name, title, note, question) {
    const panel = this.panel(name);
    const [questionLine, noteLine] = findAll(panel, ".question span");
    find(panel, "h2").textContent = title;
    noteLine.textContent = note;
    if (question) questionLine.textContent = question;
  }

  /** The legend of the histogram, whose entries show and hide stages. */
  #legend() {
    const { data, shownStages, s } = this;
    const box = find(this.panel("overlay"), ".weights-legend");
    const focused = box.contains(document.activeElement)
      ? [...box.children].indexOf(/** @type {Element} */ (document.activeElement))
      : -1;
    const entries = data.stages.map(({ name, short, label, color, dash }, stage) => {
      const button = entry("button", short, color, dash);
      button.title = label;
      const isShown = stage === s || shownStages.includes(name);
      button.setAttribute("aria-pressed", String(isShown));
      button.onclick = () => {
        const others = shownStages.filter((each) => each !== name);
        const stages = isShown ? others : [...shownStages, name].slice(-MAX_STAGES);
        this.state.set({ show: stages.join(",") || data.stages[s].name });
      };
      return button;
    });
    box.replaceChildren(...entries);
    if (focused >= 0) entries[focused]?.focus();
  }

  /** Every statistic of the tensor, a column for each stage. */
  #statistics() {
    const { data, t } = this;
    const heads = ["Figure", ...data.stages.map(({ label }) => label)];
    const rows = data.statistics.map(({ name, label, percent }) => [
      percent ? `${label}, %` : label,
      ...data.stages.map((_, s) => data.shown(name, t, s)),
    ]);
    const box = find(this.element, "#weights-table > div");
    box.replaceChildren(table([heads, rows], `${data.run}-${data.tensors[t].name}`));
  }

  /** Fills the open data tables. @param {HTMLElement} [panel] of this one only */
  #openTables(panel = this.element) {
    for (const details of findAll(panel, ".weights-panel details.card-data[open]"))
      this.#fillTable(details);
    if (find(this.element, "#weights-table", HTMLDetailsElement).open) this.#statistics();
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
    if (id === "weights-overlay") return [this.histogram.table(), `${file}-histogram`];
    if (id === "weights-more")
      return this.plot && [this.plot.table, `${data.run}-${this.plot.file}`];
    if (id === "weights-groups") {
      const figures = this.lens.table();
      return figures && [figures, `${file}-magnitudes`];
    }
    if (id === "weights-ridges") {
      const { module } = data.tensors[t];
      return [this.ridges.table(), `${data.run}-${now.stage}-${module}-ridges`];
    }
    const { label, unit, at } = this.mapFigure;
    const values = at(s);
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

  /** Fills the parts of the page that depend on the run. */
  #fill() {
    const { data } = this;
    const { now } = this.state;
    /** @type {(each: {name: string, label: string}) => Choice} */
    const choice = ({ name, label }) => [label, name];
    const peers = data.runs.filter(([, run, model]) => run !== now.run && model === data.model);
    this.#options("run", runsOf(data), now.run);
    this.#options(
      "vs",
      [
        ["Compare to …", ""],
        ...data.stages.map(choice),
        ...peers.map(([label, run]) => /** @type {Choice} */ ([label, run])),
      ],
      now.vs,
    );
    this.#options("tensor", data.tensors.map(choice), now.tensor);
    this.#options("stat", data.statistics.map(choice), now.stat);
    this.rail.fill(data, null);
  }

  /** @type {(field: Field, choices: Choice[], value: string) => void} */
  #options(field, choices, value) {
    const select = find(this.element, `[data-state="${field}"]`, HTMLSelectElement);
    offer(select, choices, value);
  }

  /** Shows the state in the controls. */
  #controls() {
    const { element } = this;
    const { now } = this.state;
    const brush = range(now.brush);
    for (const select of findAll(element, "[data-state]", HTMLSelectElement)) {
      const value = now[/** @type {Field} */ (select.dataset.state)];
      if (select.value !== value) select.value = value;
    }
    for (const button of findAll(element, "[data-view]"))
      button.setAttribute("aria-pressed", String(button.dataset.view === now.view));
    for (const option of findAll(element, "[data-of]"))
      option.hidden = option.dataset.of !== now.view || ("whole" in option.dataset && !now.spot);
    findAll(element, "[data-brush]", HTMLInputElement).forEach((input, i) => {
      if (input !== document.activeElement) input.value = brush ? String(brush[i]) : "";
    });
    find(element, ".weights-brush").hidden = !brush;
    find(element, "[data-log]").setAttribute("aria-pressed", String(now.y === "log"));
    find(element, "[data-play]").hidden = this.data.main.length < 2;
    this.all.classList.toggle("lens", now.view === "groups");
    this.panel("ridges").hidden = now.view !== "ridges";
    this.panel("groups").hidden = now.view !== "groups";
    this.panel("more").hidden = !VIEWS[now.view];
    if (now.view !== "groups") this.rail.fill(this.data, null);
  }

  #wire() {
    /** @type {(selector: string, event: string, act: (each: HTMLElement) => void) => void} */
    const on = (selector, event, act) => {
      for (const each of findAll(this.element, selector))
        each.addEventListener(event, () => act(each));
    };
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
    on("[data-log]", "click", () =>
      this.state.set({ y: this.state.now.y === "log" ? "linear" : "log" }),
    );
    on("[data-play]", "click", () => {
      if (!this.isPlaying) return this.play();
      this.stop();
      this.draw();
    });
    on("details", "toggle", () => {
      if (this.#data) this.#openTables();
    });
    on("[data-save]", "click", (button) => this.#save(button, button.dataset.save ?? ""));
    on("[data-full]", "click", (button) => window.slimscope.fullScreen(button.closest(".card")));
    on("#weights-save", "click", () => saveAll(this.data));
    this.#wireView();
  }

  /** The pointer on a view of profiles. */
  #wireView() {
    const canvas = this.canvas("more");
    readOut(canvas, find(this.panel("more"), "output"), () => this.plot);
    canvas.onclick = (event) => {
      const place = this.plot?.at(event);
      if (place && this.plot?.pick) this.state.set(this.plot.pick(place));
    };
  }

  /** Space holds the dense stage; digits choose a main stage. */
  #keys() {
    const isTaken = (/** @type {KeyboardEvent} */ event) =>
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      !this.#data ||
      Boolean(
        window.slimscope.closest(event, "input, select, textarea, a, summary, [role=textbox]"),
      ) ||
      Boolean(document.querySelector("dialog[open]"));
    const hold = (/** @type {number} */ s) => {
      if (this.held === s) return;
      this.held = s;
      this.draw(true);
    };
    document.addEventListener("keydown", (event) => {
      if (isTaken(event)) return;
      const { main, stages } = this.data;
      const stage = /^[1-9]$/.test(event.key) ? stages[main[Number(event.key) - 1]] : null;
      if (stage) this.state.set({ stage: stage.name, step: "" });
      else if (event.key !== " " || window.slimscope.closest(event, "button:not([role=radio])"))
        return;
      else hold(main[0]);
      event.preventDefault();
    });
    const release = () => {
      if (this.held >= 0) hold(-1);
    };
    document.addEventListener("keyup", (event) => {
      if (event.key !== " " || this.held < 0) return;
      event.preventDefault();
      release();
    });
    window.addEventListener("blur", release);
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
      const caption = find(panel, ".question").textContent;
      const title = find(panel, "h2").textContent;
      picture(find(panel, "canvas", HTMLCanvasElement), title, caption, save);
    } else if (format === "csv") saveFigures(...figures);
    else window.slimscope.share(panel.id);
  }
}

/** Labels and names of the runs. @type {(data: Histograms) => Choice[]} */
const runsOf = ({ runs }) => runs.map(([label, run]) => [label, run]);

/** An entry of a legend. @type {(tag: "span" | "button", text: string, color: string, dash: string) => HTMLElement} */
function entry(tag, text, color, dash) {
  const element = create(tag, { className: "weights-entry", textContent: text });
  element.style.setProperty("--stage", stageInk(color));
  element.dataset.dash = dash;
  return element;
}
