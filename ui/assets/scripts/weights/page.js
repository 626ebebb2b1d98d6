/* The Weights page: the toolbar and the panels, all of which draw one state. */
import { inks, lower, measureAgain, number, picture, stageInk, surface } from "./canvas.js";
import { VIEWS } from "./views.js";
import { HistogramChart } from "./histogram.js";
import { load } from "./histograms.js";
import { LayerMap } from "./map.js";
import { Ridges } from "./ridges.js";
import { Selection, asked, range } from "./state.js";
import { offer, saveAll, table } from "./tables.js";
import { ofDepth, ofHistogram, ofMap, tiles } from "./words.js";

const MOST_STAGES = 4,
  FAR = 30, // times the median, from where on colours are on a log scale
  INSTEAD = "kurtosis"; // shown where a statistic is not measured
const OF_VIEWS = [
  "all",
  "size",
  "mode",
  "tensor",
  "stage",
  "view",
  "show",
  "side",
  "measure",
  "order",
  "cells",
  "flow",
  "spot",
  "y",
];
let early = null; // the run of the address, asked for while Gradio starts
const ofAddress = () => new URLSearchParams(location.search).get("run") ?? "";

/** Begins to load what the address asks for. */
export function ahead() {
  early ??= load(ofAddress());
  early.catch(() => {});
}

/** Draws the page into its element; `opened` is called when another run is shown. */
export function start(element, opened) {
  const page = new Page(element, opened);
  Object.assign(window.slimscope, {
    openedRun: () => page.state.now.run,
    openRun: (run) => {
      if (run && run !== page.state.now.run) page.open(run);
    },
    changed: () => page.refresh(),
    back: () => {
      page.restore();
      return true;
    },
    nextStop: () => page.step(),
  });
  early ??= load(ofAddress());
  page.show(early);
}

/** The parts of a state that say something. */
const written = (state) => Object.fromEntries(Object.entries(state).filter(([, value]) => value));

class Page {
  data = null;
  other = null;
  hovered = -1;
  plot = null;
  asked = 0;
  opening = 0; // of views and of runs: the newest wish counts

  constructor(element, opened) {
    const part = (id) => element.querySelector(`#weights-${id}`),
      canvas = (id) => part(id).querySelector("canvas");
    Object.assign(this, {
      element,
      opened,
      part,
      state: new Selection(asked(location.search)),
      texts: JSON.parse(element.querySelector("[data-texts]").dataset.texts),
    });
    this.map = new LayerMap(canvas("heatmap"), {
      hover: (t) => {
        this.hovered = t;
        this.draw(new Set(["hover"]));
      },
      pick: (t) => this.pick(t),
    });
    this.histogram = new HistogramChart(
      canvas("overlay"),
      part("overlay").querySelector("output"),
      {
        brush: (low, high) =>
          this.state.set({ brush: `${Number(low.toPrecision(3))}~${Number(high.toPrecision(3))}` }),
        clear: () => this.state.set({ brush: "" }),
      },
    );
    this.ridges = new Ridges(canvas("ridges"), {
      stage: (s) => this.state.set({ stage: this.data.stages[s].name }),
    });
    this.state.listen((changed) => this.#changed(changed));
    this.#wire();
    window.slimscope.pin = () =>
      window.slimscope.address({ run: this.state.now.run, stage: this.state.now.stage });
    new ResizeObserver(() => {
      measureAgain();
      if (this.data) this.draw(new Set(["size"]));
    }).observe(element);
    new MutationObserver(() => this.data && this.draw(new Set(["mode"]))).observe(document.body, {
      attributeFilter: ["class"],
    });
  }

  /* --- what is looked at --------------------------------------------------------------------- */

  get t() {
    return this.hovered >= 0 ? this.hovered : this.data.tensor(this.state.now.tensor);
  }
  get s() {
    return this.data.stage(this.state.now.stage);
  }

  /** The stages drawn in the histogram. */
  get shown() {
    const { data } = this,
      chosen = this.state.now.show.split(",").filter(Boolean);
    return (
      chosen.length ? chosen : this.state.now.vs ? [data.stages[data.main[0]].name] : data.overlaid
    ).map((name) => data.stage(name));
  }

  /** Where the other run is to be compared with a stage: what it kept with what this run kept. */
  twin(t, s) {
    if (!this.other) return null;
    const { name } = this.data.stages[s],
      { other } = this;
    const stage =
      name === this.data.kept && other.kept !== this.data.stages[0].name ? other.kept : name;
    return { data: other, t: other.tensor(this.data.tensors[t].name), s: other.stage(stage) };
  }

  async open(run) {
    this.state.now.run = run;
    await this.show(load(run));
    this.state.write();
  }

  /** Shows a run that is being loaded, or why there is none. */
  async show(coming) {
    const notice = this.part("notice"),
      all = this.element.querySelector(".weights-all"),
      mine = ++this.opening;
    try {
      const data = await coming;
      if (mine !== this.opening) return;
      this.data = data;
      this.hovered = -1;
      this.state.settle(data);
      this.other = this.state.now.vs ? await load(this.state.now.vs).catch(() => null) : null;
      if (!this.other) this.state.now.vs = "";
      notice.replaceChildren();
      all.hidden = false;
      this.#fill();
      this.draw();
      this.opened();
    } catch (error) {
      if (!("html" in error)) {
        notice.textContent = `The histograms could not be shown: ${error.message}`;
        console.error(error);
      }
      if (!("html" in error) || mine !== this.opening) return;
      all.hidden = true;
      if (error.html)
        notice.innerHTML = error.html; // escaped by the server
      else notice.textContent = error.message;
      const newest = await load("").catch(() => null); // so that another can be chosen
      if (newest) this.#options("run", [["Choose a run", ""], ...newest.runs], "");
    }
  }

  /** Asks whether the run has moved on; a stage nobody has chosen gives way to the next. */
  async refresh() {
    const { data, state } = this,
      before = data && { ...state.now };
    const fresh = await load(before?.run ?? ofAddress()).catch(() => null);
    if (!fresh || fresh.etag === data?.etag || (before && state.now.run !== before.run)) return;
    if (before?.stage === state.defaults.stage) state.now.stage = "";
    await this.show(Promise.resolve(fresh));
  }

  restore() {
    const wanted = asked(location.search),
      same =
        (wanted.run || this.state.defaults.run) === this.data?.run &&
        wanted.vs === this.state.now.vs;
    Object.assign(this.state.now, wanted);
    if (!same) return this.show(load(wanted.run));
    this.state.settle(this.data);
    this.#fill();
    return this.draw();
  }

  pick(t) {
    this.hovered = -1;
    this.state.set({ tensor: this.data.tensors[t].name });
    this.draw(new Set(["hover"]));
  }

  /** The next main stage, the first after the last; false where the page began. */
  step() {
    const { main, stages } = this.data ?? { main: [] },
      next = stages?.[main[(main.indexOf(this.s) + 1) % main.length]];
    if (!next || this.passed?.has(next.name)) return ((this.passed = null), false);
    (this.passed ??= new Set([stages[this.s].name])).add(next.name);
    this.state.set({ stage: next.name });
    return true;
  }

  #changed(changed) {
    if (changed.has("run")) {
      this.open(this.state.now.run);
      return;
    }
    if (changed.has("vs")) {
      this.show(Promise.resolve(this.data));
      return;
    }
    if (changed.has("tensor") && this.state.now.spot) this.state.now.spot = "";
    this.draw(changed);
  }

  /* --- panels -------------------------------------------------------------------------------- */

  /** Draws what a change touches; all without one. */
  draw(changed = new Set(["all"])) {
    const {
        data,
        state: { now },
        t,
        s,
      } = this,
      hover = changed.has("hover"),
      light = hover || changed.has("brush"),
      moves = ["stage", "tensor", "curve", "y", "show"].some((name) => changed.has(name));
    if (!hover) this.#controls();
    this.#map(t, s);
    const brush = range(now.brush),
      other = this.twin(t, s);
    this.histogram.draw(
      {
        data,
        t,
        s,
        shown: this.shown,
        other: other?.t >= 0 && other.s >= 0 ? other : null,
        curve: now.curve,
        log: now.y === "log",
        brush,
      },
      moves,
    );
    this.part("overlay").querySelector(".theory").hidden = !(data.cutoff(t, s) > 0); // it speaks of the dotted lines
    this.part("ridges").querySelector(".theory").hidden = data.stage("redense") < 0;
    const missing =
      now.vs && !(other?.t >= 0 && other.s >= 0)
        ? ` ${now.vs} has not recorded this tensor at this stage.`
        : "";
    const model =
      this.other && this.other.model !== data.model
        ? ` ${now.vs} has another model, ${this.other.model}.`
        : "";
    this.#said(
      "overlay",
      `${data.tensors[t].label} · ${ofHistogram(data, t, s)}`,
      `${this.histogram.note()}${missing}${model}`,
    );
    this.part("overlay").querySelector(".question").title = this.histogram.details();
    if (!changed.has("brush")) {
      this.#tiles(t, s);
      this.#legend(hover);
      this.#strip(t);
    }
    if (!light && now.view === "ridges") {
      this.ridges.draw({ data, t, s }, moves);
      this.#said(
        "ridges",
        ofDepth(data.tensors[t].module.split(".").pop(), this.ridges.widths()),
        this.ridges.note(),
      );
    }
    if (!light && now.view === "statistics") this.#statistics(t);
    if (VIEWS[now.view] && OF_VIEWS.some((name) => changed.has(name))) this.#more(t, s);
    if (!hover)
      for (const open of this.element.querySelectorAll(".weights-panel details.card-data[open]"))
        this.#table(open);
  }

  /** Draws a view of profiles, which are fetched; the newest wish counts. */
  async #more(t, s) {
    const {
        state: { now },
        data,
      } = this,
      mine = ++this.asked,
      panel = this.part("more"),
      chosen = now.show
        .split(",")
        .filter(Boolean)
        .map((name) => data.stage(name));
    const drawn = chosen.length ? chosen : [...new Set([data.main[0], s])];
    const view = await VIEWS[now.view]({
      now,
      data,
      t,
      s,
      drawn,
      twin: (...at) => this.twin(...at),
    }).catch((error) => `It could not be loaded: ${error.message}`);
    if (mine !== this.asked) return;
    const none = typeof view === "string",
      canvas = panel.querySelector("canvas"),
      [question, theory] = this.texts[now.view];
    panel.classList.toggle("without", none);
    this.plot = none ? null : { ...view, ...view.plot(canvas, view.spec) };
    const scale = this.plot?.scale ? ` Colours: ${this.plot.scale}.` : "";
    this.#said("more", none ? view : view.title, none ? "" : `${view.note}${scale}`, question);
    Object.assign(panel.querySelector(".theory"), {
      textContent: theory,
      hidden: now.view === "magnitudes" && !(data.cutoff(t, s) > 0),
    }); // it speaks of pruning
    const lines = view.spec?.series?.filter((each) => !each.thin) ?? [];
    this.#entries(
      panel,
      lines.map((each) => ({ ...each, words: each.label })),
    );
    canvas.style.cursor = this.plot?.pick ? "pointer" : "default";
    const open = panel.querySelector("details.card-data[open]");
    if (open && this.plot) this.#table(open);
  }

  measured(name, s) {
    return this.data.tensors.some((_, t) => Number.isFinite(this.data.value(name, t, s)));
  }

  /** What the map shows: a statistic, its difference, or where the marked magnitudes are. Where the statistic
      is not measured at the stage, such as an error of the dense model, another one is shown. */
  figure(s) {
    const {
        data,
        other,
        state: { now },
      } = this,
      brush = range(now.brush);
    const {
      name: stat,
      label,
      question,
      percent,
    } = data.statistics.find(({ name }) => name === now.stat && this.measured(name, s)) ??
    data.statistics.find(({ name }) => name === INSTEAD) ??
    data.statistics[0];
    if (brush) {
      const words = brush[0]
        ? `Weights with magnitudes from ${number(brush[0])} to ${number(brush[1])}`
        : `Weights with magnitudes below ${number(brush[1])}`;
      return {
        label: words,
        unit: " %",
        even: false,
        question: "Where do the weights live that are marked in the histogram?",
        values: data.tensors.map((_, t) => (data.has(t, s) ? 100 * data.within(t, s, brush) : NaN)),
      };
    }
    const values = data.tensors.map((_, t) => data.shown(stat, t, s)),
      even =
        now.against === "run"
          ? Boolean(other)
          : now.against === "dense" && data.stages[s].name !== "dense";
    const of = (t) => {
      const twin = now.against === "run" ? this.twin(t, s) : { data, t, s: data.stage("dense") };
      return twin.t >= 0 && twin.s >= 0 ? twin.data.shown(stat, twin.t, twin.s) : NaN;
    };
    const sizes = values.filter(Number.isFinite).sort((a, b) => a - b),
      log = sizes[0] > 0 && sizes.at(-1) > FAR * sizes[sizes.length >> 1];
    if (!even)
      return {
        stat,
        label,
        unit: percent ? " %" : "",
        even,
        log,
        question,
        values,
        lacks: stat !== now.stat,
      };
    const base = now.against === "run" ? now.vs : "dense";
    return {
      stat,
      label: `Difference in ${lower(label)} to ${base}`,
      unit: percent ? " points" : "",
      even,
      question: `Where does ${lower(label)} differ from ${base}? No colour: no difference.`,
      values: values.map((value, t) => value - of(t)),
    };
  }

  #map(t, s) {
    const { data } = this,
      shown = this.figure(s),
      picked = data.tensor(this.state.now.tensor),
      missing = shown.values.filter((value) => !Number.isFinite(value)).length;
    this.shownMap = shown;
    const select = this.element.querySelector('[data-state="stat"]'); // says what is drawn, and offers what is measured
    select.value = shown.stat ?? this.state.now.stat;
    select.disabled = !shown.stat;
    for (const option of select.options) option.disabled = !this.measured(option.value, s);
    this.map.draw({ data, ...shown, picked });
    const named =
      this.hovered >= 0 ? `${data.tensors[t].label}: ${number(shown.values[t])}${shown.unit}` : "";
    this.part("heatmap").querySelector("output").textContent = named;
    const { label } = data.statistics.find(({ name }) => name === this.state.now.stat);
    const why = shown.lacks ? `${label} is not measured at stage ${data.stages[s].label}; ` : "",
      without = missing ? `, ${missing} without a value` : "";
    this.part("heatmap").querySelector(".theory").hidden = shown.stat !== "relative_error"; // it speaks of what layers bear
    this.#said(
      "heatmap",
      ofMap(data, shown.label, shown.unit, [...shown.values.entries()], why),
      `${data.stages[s].label}, n = ${data.tensors.length} matrices${without}.`,
      shown.question,
    );
  }

  #said(id, title, note, question) {
    const panel = this.part(id),
      [asks, quiet] = panel.querySelectorAll(".question span");
    panel.querySelector("h2").textContent = title;
    quiet.textContent = note;
    if (question) asks.textContent = question;
    panel.querySelector("canvas").dataset.words = title;
  }

  /** The tensor at every stage, small, above the slider. */
  #strip(t) {
    const ink = inks(),
      { data } = this,
      reach = data.reach(t, data.main),
      [from, to] = data.range(t);
    const most = Math.max(...data.heights(t, data.main[0], 64), 0.01) * 1.2;
    [...this.stops.children].forEach((stop, s) => {
      const { pen, width, height } = surface(stop.firstChild, 20);
      const x = (i) => ((from + (i * (to - from)) / 64 + reach) / (2 * reach)) * width;
      pen.fillStyle = ink.stage(data.stages[s].colour);
      const bar = (h, i) =>
        pen.fillRect(
          x(i),
          height - Math.min(1, h / most) * height,
          Math.max(1, x(i + 1) - x(i)),
          height,
        );
      data.heights(t, s, 64).forEach(bar);
    });
  }

  #tiles(t, s) {
    this.element.querySelector(".weights-tiles").replaceChildren(
      ...tiles(this.data, t, s).map(([name, value, sentence]) => {
        const tile = document.createElement("div");
        const line = ([tag, textContent]) =>
          Object.assign(document.createElement(tag), { textContent });
        tile.append(
          ...[
            ["dt", name],
            ["dd", value],
            ["dd", sentence],
          ].map(line),
        );
        return tile;
      }),
    );
  }

  #legend(hover) {
    if (hover) {
      // only the numbers of zeros change
      const entries = this.part("overlay").querySelectorAll(".weights-entry");
      this.histogram.legend().forEach(({ words }, i) => {
        if (entries[i]) entries[i].textContent = words;
      });
      return;
    }
    const shown = this.shown.map((s) => this.data.stages[s].name),
      { stage } = this.state.now;
    const others = this.data.stages.filter(({ name }) => !shown.includes(name) && name !== stage);
    const more = Object.assign(document.createElement("select"), {
      ariaLabel: "Add or remove a stage",
    });
    more.append(
      new Option("Stages …", ""),
      ...others.map(({ name, label }) => new Option(`Add ${label}`, name)),
      ...shown
        .filter((name) => name !== stage)
        .map((name) => new Option(`Remove ${this.data.stages[this.data.stage(name)].label}`, name)),
    );
    more.onchange = () =>
      this.state.set({
        show:
          (shown.includes(more.value)
            ? shown.filter((name) => name !== more.value)
            : [...shown, more.value].slice(-MOST_STAGES)
          ).join(",") || stage,
      });
    this.#entries(this.part("overlay"), this.histogram.legend(), more);
  }

  /** What the lines of a panel mean. */
  #entries(panel, lines, ...others) {
    const box = panel.querySelector(".weights-legend"),
      entries = lines.map(({ words, colour, dash }) => {
        const entry = Object.assign(document.createElement("span"), {
          className: "weights-entry",
          textContent: words,
        });
        entry.style.setProperty("--stage", stageInk(colour));
        entry.dataset.dash = dash;
        return entry;
      });
    if (!box.contains(document.activeElement)) box.replaceChildren(...entries, ...others);
  }

  /** Every statistic of the tensor, a column for each stage. */
  #statistics(t) {
    const { data } = this,
      heads = ["Figure", ...data.stages.map(({ label }) => label)];
    const rows = data.statistics.map(({ name, label, percent }) => [
      percent ? `${label}, %` : label,
      ...data.stages.map((_, s) => data.shown(name, t, s)),
    ]);
    const box = this.part("table").lastElementChild;
    const more = data.groups
      ? `<p><a href="quantization?run=${encodeURIComponent(data.run)}&tensor=${encodeURIComponent(data.tensors[t].name)}">Its groups in Quantisation</a></p>`
      : "";
    box.replaceChildren(table(heads, rows, `${data.run}-${data.tensors[t].name}`));
    box.insertAdjacentHTML("beforeend", more);
  }

  #table(details) {
    const panel = details.closest(".weights-panel"),
      [heads, rows, name] = this.#figures(panel.id);
    details.lastElementChild.replaceChildren(table(heads, rows, name));
  }

  /** Heads, rows and file name of a panel's data. */
  #figures(id) {
    const {
        data,
        state: { now },
      } = this,
      file = `${data.run}-${now.tensor}`;
    if (id === "weights-overlay") return [...this.histogram.table(), `${file}-${now.curve}`];
    if (id === "weights-more") return [...this.plot.table, `${data.run}-${this.plot.file}`];
    if (id === "weights-ridges")
      return [
        ...this.ridges.table(),
        `${data.run}-${now.stage}-${data.tensors[this.t].module}-ridges`,
      ];
    const { label, unit, values } = this.shownMap,
      rows = data.tensors.map(({ name, block }, t) => [
        name,
        String(block),
        data.tail(t, this.s).n,
        values[t],
      ]);
    return [
      ["Tensor", "Block", "Weights", unit.trim() ? `${label}, ${unit.trim()}` : label],
      rows,
      `${data.run}-${now.stage}-${now.stat}`,
    ];
  }

  /* --- controls ------------------------------------------------------------------------------ */

  /** Fills what depends on the run. */
  #fill() {
    const {
      data,
      other,
      state: { now },
    } = this;
    this.#options("run", data.runs, now.run);
    this.#options(
      "vs",
      [["Compare with …", ""], ...data.runs.filter(([, run]) => run !== now.run)],
      now.vs,
    );
    this.#options(
      "tensor",
      data.tensors.map(({ name, label }) => [label, name]),
      now.tensor,
    );
    this.#options(
      "stat",
      data.statistics.map(({ name, label }) => [label, name]),
      now.stat,
    );
    const against = [
      ["Nothing", ""],
      ...(data.stage("dense") >= 0 ? [["Dense", "dense"]] : []),
      ...(other ? [["Other run", "run"]] : []),
    ];
    this.#options("against", against, now.against);
    this.slider.max = data.stages.length - 1;
    this.slider.parentElement.style.setProperty("--stages", data.stages.length);
    this.stops.replaceChildren(
      ...data.stages.map(({ name, label, perplexity, colour }) => {
        const stop = Object.assign(document.createElement("button"), {
          type: "button",
          tabIndex: -1,
          title: perplexity ? `${label}: perplexity ${number(perplexity, 4)}` : label,
        });
        stop.append(document.createElement("canvas"), label);
        stop.style.setProperty("--stage", stageInk(colour));
        stop.onclick = () => {
          this.state.set({ stage: name });
          this.slider.focus();
        };
        return stop;
      }),
    );
  }

  #options(field, offered, value) {
    offer(this.element.querySelector(`[data-state="${field}"]`), offered, value);
  }

  /** Shows the state in the controls. */
  #controls() {
    const {
        state: { now },
        s,
        element,
        data,
      } = this,
      brush = range(now.brush);
    for (const select of element.querySelectorAll("[data-state]"))
      if (select.value !== now[select.dataset.state]) select.value = now[select.dataset.state];
    this.slider.value = s;
    this.slider.setAttribute("aria-valuetext", data.stages[s].label);
    [...this.stops.children].forEach((stop, i) =>
      stop.setAttribute("aria-pressed", String(i === s)),
    );
    for (const button of element.querySelectorAll("[data-view]"))
      button.setAttribute("aria-pressed", String(button.dataset.view === now.view));
    for (const option of element.querySelectorAll("[data-of]"))
      option.hidden = option.dataset.of !== now.view || ("whole" in option.dataset && !now.spot);
    element.querySelectorAll("[data-brush]").forEach((input, i) => {
      if (input !== document.activeElement) input.value = brush ? String(brush[i]) : "";
    });
    element.querySelector("[data-clear]").hidden = !brush;
    this.part("ridges").hidden = now.view !== "ridges";
    this.part("more").hidden = !VIEWS[now.view];
    this.part("table").hidden = now.view !== "statistics";
  }

  #wire() {
    const { element } = this;
    const on = (selector, event, act) =>
      element
        .querySelectorAll(selector)
        .forEach((each) => each.addEventListener(event, () => act(each)));
    this.slider = this.part("step");
    this.stops = this.slider.nextElementSibling;
    this.slider.oninput = () => this.state.set({ stage: this.data.stages[this.slider.value].name });
    on("[data-state]", "change", (select) =>
      this.state.set({ [select.dataset.state]: select.value }),
    );
    on("[data-view]", "click", (button) => this.state.set({ view: button.dataset.view }));
    on("[data-tensor]", "click", (button) => {
      const next =
        this.data.tensors[this.data.tensor(this.state.now.tensor) + Number(button.dataset.tensor)];
      if (next) this.state.set({ tensor: next.name });
    });
    on("[data-brush]", "change", () => {
      const [low, high] = [...element.querySelectorAll("[data-brush]")].map((input) =>
          input.value.replace(",", "."),
        ),
        brush = `${low || 0}~${high}`;
      this.state.set({ brush: high && range(brush) ? brush : "" });
    });
    on("[data-clear]", "click", () => this.state.set({ brush: "" }));
    on("[data-whole]", "click", () => this.state.set({ spot: "" }));
    on("[data-play]", "click", (button) => {
      button.disabled = true;
      this.ridges.play(() => {
        button.disabled = false;
      });
    });
    on(".weights-panel details.card-data", "toggle", (details) => {
      if (details.open) this.#table(details);
    });
    on("[data-save]", "click", (button) =>
      this.#save(button.closest(".weights-panel"), button.dataset.save),
    );
    on("[data-full]", "click", (button) => window.slimscope.fullScreen(button.closest(".card")));
    const more = this.part("more").querySelector("canvas"),
      output = this.part("more").querySelector("output");
    more.onpointermove = (event) => {
      output.textContent = this.plot?.at(event)?.words ?? "";
    };
    more.onpointerleave = () => {
      output.textContent = "";
    };
    more.onclick = (event) => {
      const place = this.plot?.pick && this.plot.at(event);
      if (place) this.state.set(this.plot.pick(place));
    };
    this.part("save").onclick = () => saveAll(this.data);
  }

  #save(panel, format) {
    panel.querySelector("details.save").open = false;
    const [heads, rows, name] = this.#figures(panel.id),
      canvas = panel.querySelector("canvas"),
      words = (selector) => panel.querySelector(selector).textContent;
    const save = (blob) =>
      window.slimscope.save(`${name.replace(/[^\w.-]+/g, "-")}.${format}`, [blob], blob.type);
    if (format === "png")
      picture(
        canvas,
        words("h2"),
        `${words(".question")} ${panel.querySelector(".question").title}`,
        save,
      );
    else if (format === "webm") this.ridges.film(save);
    else if (format === "csv")
      window.slimscope.saveTable(
        table(heads, rows, name).querySelector("table"),
        name.replace(/[^\w.-]+/g, "-"),
      );
    else
      location.href = `report?${new URLSearchParams({ ...written(this.state.now), add: panel.id })}`;
  }
}
