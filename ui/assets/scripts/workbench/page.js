/* The Workbench: a format for every layer, turned by knobs. What it does is predicted here at once, and measured by the
   live model behind the page as soon as nothing moves. */
import { measureAgain, number, still } from "../weights/canvas.js";
import { HistogramChart } from "../weights/histogram.js";
import { LayerMap } from "../weights/map.js";
import { Comb } from "./comb.js";
import { DENSE, addressOf, combined, fits, format, stateAt } from "./formats.js";
import { FrontChart } from "./front.js";
import { LiveStream } from "./live.js";
import { Measured } from "./measured.js";
import { Panels } from "./panels.js";
import { fillMenu, queueProfile } from "./plans.js";
import { Predictions, profile } from "./predictions.js";
import { dense } from "./tensor.js";
import { TextCard } from "./texts.js";

const MOST_KEPT = 9;
const ACTIVE = ["queued", "starting", "running", "cancelling"]; // states of a run that has not ended
const SWEEP = { to: 70, step: 2, ms: 110 };
let early = null; // what the address asks for, loaded while Gradio starts
const asked = () => Object.fromEntries(new URLSearchParams(location.search));

async function begin(model) {
  const answer = await fetch(
      `slimscope/workbench/start?${new URLSearchParams(model ? { model } : {})}`,
    ),
    start = await answer.json();
  if (!answer.ok)
    throw Object.assign(new Error([start.what, start.why].filter(Boolean).join(" ")), { start });
  return start;
}

const tables = (start) => profile(start.profile)?.catch(() => null);
async function load(model) {
  const start = await begin(model);
  return { start, tables: await tables(start) };
}

export function ahead() {
  early ??= load(asked().model);
  early.catch(() => {});
}

/** Draws the page into its element. */
export function start(element) {
  ahead();
  const page = new Page(element);
  Object.assign(window.slimscope, {
    changed: () => page.refresh(),
    back: () => {
      page.restore();
      return true;
    },
  });
  page.show(early);
}

class Page extends Panels {
  hovered = -1;
  holding = false;
  playing = 0;
  tensor = null;
  bell = "";
  #key = "";

  constructor(element) {
    super();
    const part = (id) => element.querySelector(`#workbench-${id}`),
      canvas = (id) => part(id).querySelector("canvas");
    Object.assign(this, {
      element,
      part,
      undone: [],
      done: [],
      chosen: new Set(),
      pinned: new Set(),
      kept: [],
      exact: null,
      colour: "",
      focus: 0,
      settings: { unit: "size", front: "" },
      measured: new Measured(element),
      stream: new LiveStream((event) => this.take(event)),
    });
    this.map = new LayerMap(canvas("map"), {
      hover: (t) => {
        this.hovered = t;
        this.draw("hover");
      },
      pick: (t, keeps) => this.pick(t, keeps),
      choose: (tensors, adds) =>
        this.choose(new Set(adds ? [...this.chosen, ...tensors] : tensors)),
    });
    this.histogram = new HistogramChart(
      canvas("histogram"),
      part("histogram").querySelector("output"),
      { brush: () => {}, clear: () => {} },
      200,
    );
    this.comb = new Comb(
      ...["canvas", "output"].map((tag) => part("histogram").querySelectorAll(tag)[1]),
    );
    this.front = new FrontChart(canvas("front"), {
      hover: (words) => {
        part("front").querySelector("output").textContent = words;
      },
      pick: (place) => this.open(this.kept[place].address),
    });
    this.texts = new TextCard(part("words"), {
      write: () => this.measure(true),
      restore: (block) => this.restoreBlock(block),
    });
    this.#wire();
    new ResizeObserver(() => {
      measureAgain();
      this.#place();
      if (this.data) this.draw();
    }).observe(element);
    new MutationObserver(() => this.data && this.draw()).observe(document.body, {
      attributeFilter: ["class"],
    });
  }

  /** The charts fill what is left of the screen. */
  #place() {
    const all = this.element.querySelector(".workbench-all");
    all.style.setProperty("--top", `${Math.round(all.getBoundingClientRect().top + scrollY)}px`);
  }

  async show(coming) {
    const all = this.element.querySelector(".workbench-all"),
      notice = this.part("notice");
    try {
      const { start, tables } = await coming,
        query = asked();
      Object.assign(this, {
        etag: tables?.etag,
        model: start,
        layers: start.layers.map(([name, block, module, rows, columns]) => ({
          name,
          block,
          module,
          rows,
          columns,
          label: block < 0 ? module.split(".").pop() : `Block ${block}, ${module.split(".").pop()}`,
        })),
      });
      const outside = this.layers.filter(({ block }) => block < 0).map(({ module }) => module),
        modules = [...start.modules, ...outside];
      const cells = new Map(
        this.layers.map(({ block, module }, i) => [`${block < 0 ? "" : block} ${module}`, i]),
      );
      this.data = {
        tensors: this.layers,
        modules,
        blocks: [...new Set(this.layers.map(({ block }) => block))].filter((block) => block >= 0),
        at: (block, module) =>
          cells.get(`${outside.includes(module) ? "" : block} ${module}`) ?? -1,
      };
      this.predictions = new Predictions(this.layers, start.rest, tables);
      this.settings.front = [...this.predictions.fronts.keys()][0] ?? "";
      this.now = { identity: "", ...start.made, formats: this.layers.map(() => DENSE) };
      Object.assign(this, { undone: [], done: [], pinned: new Set() });
      this.dense = this.now.formats;
      this.#queued();
      this.kept = JSON.parse(localStorage.getItem(`slimscope-workbench-${start.model}`) ?? "[]");
      this.chosen = this.scope("all");
      notice.replaceChildren();
      this.#fill();
      this.#read(query);
      all.hidden = false;
      this.#place();
      this.#notice();
      this.draw();
      this.look();
      if (this.now.formats.some((text) => text !== DENSE)) this.measure();
    } catch (error) {
      if (!error.start) console.error(error);
      all.hidden = true;
      notice.textContent = error.message;
      const newest = error.start && (await load("").catch(() => null));
      if (newest)
        this.options(
          "model",
          [["Choose a model", ""], ...newest.start.models.map(([title, name]) => [title, name])],
          "",
        );
    }
  }

  /** Takes what an address asks for. */
  #read(query) {
    const i = this.layers.findIndex(({ name }) => name === query.focus);
    this.focus =
      i >= 0
        ? i
        : Math.max(
            0,
            this.layers.findIndex(
              ({ block, module }) =>
                block === this.data.blocks[this.data.blocks.length >> 1] &&
                module.endsWith("down_proj"),
            ),
          );
    this.colour = "";
    if (
      query.colour &&
      this.element.querySelector(`[data-knob="colour"] [value="${CSS.escape(query.colour)}"]`)
    )
      this.colour = query.colour;
    this.texts.view = query.view === "why" ? "why" : "text";
    this.bell = query.bell === "comb" ? "comb" : "";
    if (query.prompt) this.texts.prompt = query.prompt.slice(0, 400);
    if (!query.state) return;
    try {
      const state = stateAt(query.state, this.layers.length);
      const unknown = state.formats.findIndex(
        (text, at) =>
          !fits(format(text), this.layers[at].columns) ||
          (format(text).pattern && this.layers[at].block < 0),
      );
      if (unknown >= 0)
        throw new Error(
          `${this.layers[unknown].label} cannot be stored as ${state.formats[unknown]}.`,
        );
      for (const knob of ["pruner", "quantizer"])
        if (!this.model[`${knob}s`].some(({ name }) => name === state[knob]))
          throw new Error(`There is no ${knob} ${state[knob].slice(0, 40)}.`);
      this.now = state;
    } catch (error) {
      this.part("notice").textContent =
        `The state of the address cannot be opened: ${error.message} The dense model is shown.`;
    }
  }

  /** What is missing, and how to get it. */
  #notice() {
    const { model } = this,
      box = document.createElement("p"),
      line = (words) => box.append(words, " ");
    box.className = "quiet";
    if (!model.profile || model.partial) {
      line(
        model.partial
          ? `${model.profile} has profiled ${this.predictions.rows.size} of ${this.layers.length} layers; the others have no prediction yet.`
          : `${model.title} has no profile: nothing can be predicted, and a budget not be solved.`,
      );
      if (!model.partial) {
        const button = Object.assign(document.createElement("button"), {
          type: "button",
          className: "small-button",
          textContent: "Queue a profile",
        });
        button.onclick = () => queueProfile(model.model, button);
        box.append(button, " ");
      }
    }
    if (model.live.why) line(`Nothing is measured live: ${model.live.why} ${model.live.do ?? ""}`);
    this.texts.empty = model.live.why
      ? `No text: ${model.live.why}`
      : `Write, or turn a knob: ${model.title} is opened then, in at most ${number(model.live.bytes / 1e9, 2)} GB of memory.`;
    this.part("notice").append(box);
    if (!box.textContent) box.remove();
  }

  /** A profile that has moved on, or runs of states; `now`: one was queued here. */
  async refresh(now = false) {
    const waits = now || this.model?.queued.some(({ at }) => ACTIVE.includes(at));
    if (!this.model || (this.model.profile && !this.model.partial && !waits)) return;
    const { model, profile: run, partial } = this.model,
      start = await begin(model).catch(() => null);
    if (!start || model !== this.model.model) return;
    if (start.profile !== run || partial) {
      const fresh = { start, tables: await tables(start) };
      if (start.profile !== run || !start.partial || fresh.tables?.etag !== this.etag) {
        this.show(Promise.resolve(fresh));
        return;
      }
    }
    Object.assign(this.model, { runs: start.runs, queued: start.queued });
    this.#queued();
    this.draw("measured");
  }

  /** Runs that were queued from states, with the bytes of those; not those of another version of the model. */
  #queued() {
    this.queued = this.model.queued.flatMap((each) => {
      try {
        return [
          {
            ...each,
            nbytes: this.predictions.totals(stateAt(each.state, this.layers.length).formats).nbytes,
          },
        ];
      } catch {
        return [];
      }
    });
  }

  restore() {
    const query = asked();
    if (query.model && query.model !== this.model?.model) return this.show(load(query.model));
    if (!query.state) this.now = { ...this.now, formats: this.dense };
    this.#read(query);
    this.look();
    this.draw();
    return this.measure();
  }

  /* --- the state ----------------------------------------------------------------------------- */

  /** Takes a new state; those of one `key` in a row are undone together. */
  set(parts, key = "") {
    const next = { ...this.now, ...parts };
    if (addressOf(next) === this.address) return;
    if (!key || key !== this.#key) {
      this.done.push(this.now);
      this.undone = [];
    }
    this.#key = key;
    this.now = next;
    this.draw(key);
    this.measure();
    this.write(Boolean(key));
  }

  step(from, to) {
    if (!from.length) return;
    to.push(this.now);
    this.now = from.pop();
    this.#key = "";
    this.draw();
    this.measure();
    this.write();
  }

  /** A state that was kept; of a model that has changed since, the process says so. */
  open(address) {
    try {
      this.set(stateAt(address, this.layers.length));
    } catch (error) {
      this.measured.say(error.message, true);
    }
  }

  /** Changes the format of every layer that is chosen, where that fits it. Embedding and head are rounded only, in the groups
      that were profiled. */
  turn(change, key) {
    const to = (text, i) => {
      const { pattern, width } = change(format(text)),
        outside = this.layers[i].block < 0;
      const known =
        outside &&
        width &&
        this.predictions.formats.find(
          (each) =>
            format(each).bits === format(width).bits &&
            this.predictions.figure("predicted", i, each) >= 0,
        );
      const wanted = known || combined(outside ? "" : pattern, width);
      return fits(format(wanted), this.layers[i].columns) ? wanted : text;
    };
    this.set(
      { formats: this.now.formats.map((text, i) => (this.chosen.has(i) ? to(text, i) : text)) },
      key,
    );
  }

  prune(pattern, key = "") {
    this.turn(({ width }) => ({ pattern, width }), key);
  }

  restoreBlock(block) {
    this.set({
      formats: this.now.formats.map((text, i) => (this.layers[i].block === block ? DENSE : text)),
    });
  }

  /** `moving`: a slider is held. */
  write(moving = false) {
    window.slimscope.address(
      {
        model: this.model.model,
        state: this.isDense ? "" : this.address,
        focus: this.layers[this.focus].name,
        colour: this.colour,
        view: this.texts.view === "text" ? "" : this.texts.view,
        bell: this.bell,
        prompt: this.texts.own,
      },
      moving,
    );
  }

  pick(t, keeps = false) {
    this.hovered = -1;
    this.focus = t;
    if (!keeps) this.chosen = new Set([t]);
    this.draw();
    this.look();
    this.write();
  }

  choose(tensors) {
    this.chosen = tensors;
    if (!tensors.has(this.focus)) {
      // a knob should move the histogram that is shown
      this.focus = [...tensors][0];
      this.look();
    }
    this.draw();
  }

  /* --- measured ------------------------------------------------------------------------------ */

  /** Asks the live model about the state. */
  measure(at_once = false) {
    if (this.model.live.why) return;
    const want =
      this.texts.view === "text"
        ? ["loss", "text", "speed", "refine"]
        : this.texts.whole
          ? ["loss", "why", "refine"]
          : ["text"];
    this.measured.begin(this.address);
    this.texts.empty = this.measured.status.textContent;
    this.texts.begin();
    this.stream.ask(
      {
        model: this.model.model,
        state: this.address,
        want,
        prompt: this.texts.prompt,
        text: this.texts.whole,
        tokens: 48,
      },
      at_once,
    );
  }

  /** An event of the live model. */
  take(event) {
    if (event.event === "opened" && this.now.identity !== event.identity) {
      this.now.identity = event.identity;
      this.write();
    }
    if (event.event === "applied") this.#exactly(event);
    this.measured.take(event);
    if (["waits", "error"].includes(event.event))
      this.texts.empty = this.measured.status.textContent;
    this.texts.take(event);
    if (["applied", "loss", "speed"].includes(event.event)) this.draw("measured");
  }

  /** The live weights of the layer that is looked at, where they are not what a knob shows at once. */
  async #exactly({ exactly }) {
    const text = this.now.formats[this.focus];
    if (!exactly || (this.isInstant("pruner") && this.isInstant("quantizer")) || text === DENSE)
      return;
    this.exact = await this.stream
      .tensor(this.model.model, this.address, this.layers[this.focus].name)
      .catch(() => null);
    this.draw("measured");
  }

  /** Loads the weights of the layer that is looked at. */
  async look() {
    const { name } = this.layers[this.focus];
    this.tensor = await dense(this.model.model, name).catch((error) => error.message);
    if (name === this.layers[this.focus].name) this.draw("tensor");
    this.#exactly(this.measured.of(this.address) ?? {});
    if (typeof this.tensor !== "string") setTimeout(() => this.tensor.prepare?.(this.score)); // before a slider moves
  }

  /* --- controls ------------------------------------------------------------------------------ */

  solve() {
    const { unit, front } = this.settings,
      wanted = this.ends().value(this.part("budget").value / 1000),
      { predictions } = this;
    const within = {
      size: (each) => each.nbytes <= wanted + 1,
      read: (each) => each.read <= wanted + 1,
      loss: (each) => Math.exp(each.loss) - 1 <= wanted,
    }[unit];
    this.set(
      { formats: predictions.solve(front, this.now.formats, this.pinned, within, unit === "loss") },
      "budget",
    );
  }

  keepOnly(kept) {
    this.kept = kept;
    localStorage.setItem(`slimscope-workbench-${this.model.model}`, JSON.stringify(kept));
    this.draw();
  }

  /** What is predicted and measured of the state, as far as it is known. */
  known() {
    const totals = this.predictions.totals(this.now.formats),
      { ratio: live, tokens } = this.measured.of(this.address) ?? {};
    return {
      ...(this.predictions.run && !totals.unknown && !this.madeOtherwise(totals)
        ? { predicted: Math.exp(totals.loss) }
        : {}),
      ...(live ? { live, tokens } : {}),
    };
  }

  keep() {
    const { predicted, live } = this.known(),
      { nbytes } = this.predictions.totals(this.now.formats);
    const state = {
      address: this.address,
      nbytes,
      ratio: live ?? predicted ?? NaN,
      how: live ? "measured" : "predicted",
    };
    this.keepOnly(
      [...this.kept.filter(({ address }) => address !== this.address), state].slice(-MOST_KEPT),
    );
  }

  #fill() {
    const { model } = this,
      methods = (all) => all.map(({ name, label: words }) => [words, name]);
    this.options(
      "model",
      model.models.map(([title, name, profiled]) => [
        profiled ? title : `${title} (no profile)`,
        name,
      ]),
      model.model,
    );
    this.options("pruner", methods(model.pruners), this.now.pruner);
    this.options("quantizer", methods(model.quantizers), this.now.quantizer);
    this.options(
      "colour",
      [...this.element.querySelectorAll('[data-knob="colour"] option')].map((each) => [
        each.textContent,
        each.value,
      ]),
      this.colouring,
    );
    this.options(
      "front",
      [...this.predictions.fronts.keys()].map((name) => [
        name === "pruned" ? "by sparsity" : "by bits",
        name,
      ]),
      this.settings.front,
    );
    this.button("play").disabled = false;
  }

  #wire() {
    const { element, part } = this,
      on = (selector, event, act) => element.querySelector(selector).addEventListener(event, act);
    const knob = (name, act) =>
      on(`[data-knob="${name}"]`, "change", ({ target }) => act(target.value));
    knob("model", (name) => {
      if (name) {
        window.slimscope.address({ state: "", focus: "", model: name });
        this.stream.end();
        this.show(load(name));
      }
    });
    knob("colour", (name) => {
      this.colour = name;
      this.draw();
      this.write();
    });
    knob("scope", (name) => {
      if (name) this.choose(this.scope(name));
    });
    knob("group", (size) => {
      this.settings.group = Number(size);
      this.turn((form) => ({ pattern: form.pattern, width: form.width && this.width(form.bits) }));
      this.draw();
    });
    for (const name of ["pruner", "quantizer"]) knob(name, (value) => this.set({ [name]: value }));
    for (const name of ["unit", "front"])
      knob(name, (value) => {
        this.settings[name] = value;
        this.draw();
      });
    part("sparsity").oninput = ({ target }) =>
      this.prune(Number(target.value) ? `${target.value}%` : "", "sparsity");
    part("budget").oninput = () => this.solve();
    for (const id of ["sparsity", "budget"])
      part(id).onchange = () => {
        this.#key = "";
        this.write();
      };
    on('[data-group="pattern"]', "click", ({ target }) => {
      if (target.matches("button")) this.prune(target.value);
    });
    on('[data-group="bits"]', "click", ({ target }) => {
      if (target.matches("button"))
        this.turn(({ pattern }) => ({
          pattern,
          width: target.value === "16" ? "" : this.width(target.value),
        }));
    });
    const hold = (is) => {
      if (this.data && this.holding !== is) {
        this.holding = is;
        this.button("dense").setAttribute("aria-pressed", String(is));
        this.texts.hold(is);
        this.draw();
      }
    };
    Object.assign(this.button("dense"), {
      onpointerdown: () => hold(true),
      onpointerup: () => hold(false),
      onpointerleave: () => hold(false),
      onblur: () => hold(false),
    });
    const acts = {
      undo: () => this.step(this.done, this.undone),
      redo: () => this.step(this.undone, this.done),
      keep: () => this.keep(),
      play: () => this.play(),
      pin: () => {
        const all = [...this.chosen].every((i) => this.pinned.has(i));
        for (const i of this.chosen) this.pinned[all ? "delete" : "add"](i);
        this.draw();
      },
    };
    for (const [name, act] of Object.entries(acts)) this.button(name).onclick = act;
    on('[data-group="bell"]', "click", ({ target }) => {
      if (target.matches("button")) {
        this.bell = target.dataset.value;
        this.draw();
        this.write();
      }
    });
    on('[data-group="view"]', "click", ({ target }) => {
      if (target.matches("button")) {
        this.texts.view = target.dataset.value;
        this.write();
        this.measure(true);
      }
    });
    document.addEventListener("keydown", (event) => this.#key_down(event, hold));
    document.addEventListener("keyup", ({ key }) => {
      if (key === " ") hold(false);
    });
    for (const menu of element.querySelectorAll("[data-menu]"))
      menu.ontoggle = () => {
        if (menu.open) fillMenu(menu, this);
      };
  }

  #key_down(event, hold) {
    if (
      !this.data ||
      event.target.closest?.(
        "input:not([type='range']), textarea, select, dialog, [contenteditable]",
      )
    )
      return;
    const control = event.ctrlKey || event.metaKey,
      pressed = event.key.toLowerCase();
    if (control && pressed === "z")
      this.step(...(event.shiftKey ? [this.undone, this.done] : [this.done, this.undone]));
    else if (
      event.key === " " &&
      (event.target === this.button("dense") || !event.target.closest?.("button, summary, a"))
    )
      hold(true);
    else if (event.target === this.part("map").querySelector("canvas") && pressed === "a")
      this.choose(this.scope("all"));
    else return;
    event.preventDefault();
  }

  /** Moves the sparsity of what is chosen from 0 to 70 %. */
  play() {
    const button = this.button("play"),
      stop = () => {
        clearInterval(this.playing);
        this.playing = 0;
        this.#key = "";
        button.textContent = "Play sparsity 0 to 70 %";
      };
    if (this.playing) return stop();
    const pace = still() ? 5 : 1;
    let at = 0;
    button.textContent = "Stop";
    const step = () => {
      this.prune(at ? `${at}%` : "", "sparsity");
      if ((at += SWEEP.step * pace) > SWEEP.to || document.hidden) stop();
    };
    this.playing = setInterval(step, SWEEP.ms * pace);
    return step();
  }
}
