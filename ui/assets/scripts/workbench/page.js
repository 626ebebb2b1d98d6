/* The workbench: a format for every layer, set by controls. The effect is predicted immediately, and measured by the
   live model as soon as nothing moves. */
import { measureAgain } from "../weights/canvas.js";
import { offer } from "../weights/tables.js";
import { button, pressed, reason } from "./elements.js";
import { addressOf } from "./formats.js";
import { FrontPanel } from "./front.js";
import { Knobs } from "./knobs.js";
import { LiveStream } from "./live.js";
import { Measured, megabytes } from "./measured.js";
import { explain, LayerPanel, MapPanel, showTable } from "./panels.js";
import { fillExports, fillRuns, json, queueProfile } from "./plans.js";
import { profile } from "./predictions.js";
import { dense } from "./tensor.js";
import { TextCard } from "./texts.js";
import { View } from "./view.js";

const { slimscope } = window;
const { find } = slimscope;

/** @typedef {import("./formats.js").State} State */
/** @typedef {{start: import("./view.js").Start, tables: import("./predictions.js").Profile | null}} Loaded */
/** @typedef {Record<string, string>} Query */
/** @typedef {import("./knobs.js").Offer} Offer */

const MOST_KEPT = 9;
const ACTIVE = ["queued", "starting", "running", "cancelling"]; // states of a run that has not ended
const TYPED = "input:not([type='range']), textarea, select, dialog, [contenteditable]";
/** @type {Promise<Loaded> | null} */
let early = null; // data of the address, loaded while Gradio starts
/** @returns {Query} */
const asked = () => Object.fromEntries(new URLSearchParams(location.search));

/** The server rejects a model. */
class Refused extends Error {}

/** @param {string} model "": the most recently profiled model @param {string} state its address @returns {Promise<import("./view.js").Start>} */
async function begin(model, state) {
  const query = new URLSearchParams({ model, state });
  const answer = await fetch(`slimscope/workbench/start?${query}`);
  const start = await answer.json();
  if (answer.ok) return start;
  throw new Refused([start.what, start.why].filter(Boolean).join(" "));
}

/** A model with its profile, and the state of an address. @param {string} [model] @param {string} [state]
    @returns {Promise<Loaded>} */
async function load(model = "", state = "") {
  const start = await begin(model, state);
  return { start, tables: await profile(start.profile) };
}

function first() {
  early ??= load(asked().model, asked().state);
  return early;
}

export function ahead() {
  first().catch(() => {});
}

/** Draws the page into its element. @param {HTMLElement} element */
export function start(element) {
  const page = new Page(element);
  slimscope.changed = () => page.refresh();
  slimscope.back = () => {
    page.restore();
    return true;
  };
  page.show(first());
}

export class Page {
  /** @type {View | null} */
  #view = null;
  #key = "";
  /** @type {Map<HTMLElement, number>} */
  #heights = new Map(); // of the canvases of cards; reading them makes the browser lay out the page
  #wishes = 0; // requested addresses

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    const part = (/** @type {string} */ id) => find(element, `#workbench-${id}`);
    this.all = find(element, ".workbench-all");
    this.why = find(element, ".workbench-why");
    this.notice = part("notice");
    this.known = find(element, ".workbench-known");
    this.cards = { map: part("map"), layer: part("histogram"), front: part("front") };
    this.measured = new Measured(element);
    this.stream = new LiveStream((event) => this.take(event));
    this.map = new MapPanel(this.cards.map, {
      hover: (t) => {
        this.view.hovered = t;
        this.draw("hover");
      },
      pick: (t, keeps) => this.pick(t, keeps),
      choose: (tensors, adds) =>
        this.choose(new Set([...(adds ? this.view.chosen : []), ...tensors])),
    });
    this.layer = new LayerPanel(this.cards.layer);
    this.front = new FrontPanel(this.cards.front, find(element, ".workbench-kept"), {
      open: (address) => this.open(address),
      take: (formats) => this.set({ formats }),
      drop: () => this.draw(),
    });
    this.texts = new TextCard(part("words"), {
      write: () => this.measure(true),
      restore: (block) => this.restoreBlock(block),
    });
    this.knobs = new Knobs(part("knobs"), this);
    this.#wire();
    this.#wireKeys();
    const sizes = new ResizeObserver(() => {
      measureAgain();
      this.#heights.clear();
      this.#place();
      if (this.#view) this.draw();
    });
    sizes.observe(element);
    for (const canvas of element.querySelectorAll(".workbench-canvas")) sizes.observe(canvas);
    new MutationObserver(() => this.#view && this.draw()).observe(document.body, {
      attributeFilter: ["class"],
    });
  }

  /** The shown model; controls are hidden until it is loaded. */
  get view() {
    if (!this.#view) throw new Error("No model is shown yet.");
    return this.#view;
  }

  /** The charts fill the rest of the screen. */
  #place() {
    const top = Math.round(this.all.getBoundingClientRect().top + scrollY);
    this.all.style.setProperty("--top", `${top}px`);
  }

  /** @param {Promise<Loaded>} coming */
  async show(coming) {
    try {
      this.#open(await coming);
    } catch (error) {
      if (!(error instanceof Refused)) console.error(error);
      this.all.hidden = true;
      this.notice.textContent = reason(error);
      const newest = error instanceof Refused ? await load().catch(() => null) : null;
      if (newest) this.#offerModels(newest.start, "");
    }
  }

  /** Fills the list of models and selects the shown one; "": none. @param {import("./view.js").Start} start @param {string} shown */
  #offerModels({ models }, shown) {
    /** @type {Offer[]} */
    const choices = shown ? [] : [["Choose a model", ""]];
    for (const [title, name, profiled] of models)
      choices.push([profiled ? title : `${title} (no profile)`, name]);
    offer(this.#select("model"), choices, shown);
  }

  /** @param {Loaded} loaded */
  #open({ start: model, tables }) {
    if (this.#view?.model.model !== model.model) {
      this.stream.end();
      this.measured.forget();
    }
    /** @type {import("./view.js").Settings} */
    const usual = { unit: "size", front: "", group: null };
    const settings = this.#view?.settings ?? usual;
    const view = new View(model, tables, settings);
    this.#view = view;
    this.notice.replaceChildren();
    this.#settle();
    this.#take(model.state);
    this.#offerModels(model, model.model);
    this.knobs.fill(view);
    this.#read(asked());
    this.#tell(model);
    this.all.hidden = false;
    this.#place();
    this.draw();
    this.look();
    const { budget } = asked();
    if (budget && view.isDense) this.ask(budget);
    else if (!view.isDense) this.measure();
  }

  /** Shows the state of an address; if it is invalid, the dense state with a notice.
      @param {import("./view.js").SentState | null} sent */
  #take(sent) {
    const { view } = this;
    view.now = { ...view.now, formats: view.dense };
    try {
      if (sent) view.now = view.opened(sent);
    } catch (error) {
      this.notice.textContent = `${reason(error)} The dense model is shown. `;
    }
  }

  /** Applies the parts of an address other than the state. @param {Query} query */
  #read(query) {
    const { view } = this;
    const { layers, map } = view;
    const middle = map.blocks[map.blocks.length >> 1];
    const typical = layers.findIndex(
      ({ block, module }) => block === middle && module.endsWith("down_proj"),
    );
    const named = layers.findIndex(({ name }) => name === query.focus);
    view.focus = named >= 0 ? named : Math.max(0, typical);
    const colors = [...this.#select("color").options].map(({ value }) => value);
    view.color = colors.includes(query.color) ? query.color : "";
    view.at = query.at ?? "";
    view.bell = query.bell === "comb" ? "comb" : "";
    this.texts.view = query.view === "why" ? "why" : "text";
    if (query.prompt) this.texts.prompt = query.prompt.slice(0, 400);
  }

  /** Says what is missing and offers it, and what the profile knows. @param {import("./view.js").Start} model */
  #tell({ model, notice, known, empty, offer: made, profile: run }) {
    this.notice.insertAdjacentHTML("beforeend", notice); // escaped by the server, as is `known`
    this.known.innerHTML = known;
    this.known.title = this.known.textContent ?? "";
    this.texts.empty = empty;
    const asks = this.notice.querySelector("button");
    if (!asks) return;
    asks.onclick = () => queueProfile(model, asks, () => this.refresh(true));
    if (made?.automatic && !run) asks.click();
  }

  /** Checks for progress of the profile and for runs of states; `now`: a run was just queued. */
  async refresh(now = false) {
    const view = this.#view;
    if (!view) return;
    const { model } = view;
    const waits = now || model.runs.some(({ at }) => ACTIVE.includes(at));
    if (model.profile && !model.partial && !waits) return;
    const state = view.isDense ? "" : view.address;
    const fresh = await load(model.model, state).catch(() => null);
    if (!fresh || view !== this.#view) return;
    const { start, tables } = fresh;
    const further = model.partial && (!start.partial || tables?.etag !== view.etag);
    if (start.profile !== model.profile || further) {
      this.show(Promise.resolve(fresh));
      return;
    }
    model.runs = start.runs;
    this.draw("measured");
  }

  /** Shows the view of the address again. */
  async restore() {
    const query = asked();
    const view = this.#view;
    if (!view || (query.model && query.model !== view.model.model)) {
      this.show(load(query.model, query.state));
      return;
    }
    this.stream.end(); // its events would write the address of the previous state
    const wish = ++this.#wishes;
    const refused = (/** @type {unknown} */ error) => ({ state: { refused: reason(error) } });
    const { state } = query.state
      ? await begin(view.model.model, query.state).catch(refused)
      : { state: null };
    if (view !== this.#view || wish !== this.#wishes) return; // a newer address was requested
    this.#settle();
    this.#take(state);
    this.#read(query);
    this.look();
    this.draw();
    this.measure();
  }

  /* --- the state ----------------------------------------------------------------------------- */

  /** Applies a new state; consecutive states with the same `key` are undone together. @param {Partial<State>} parts */
  set(parts, key = "") {
    const { view } = this;
    const next = { ...view.now, ...parts };
    this.#settle();
    if (addressOf(next) === view.address) {
      this.draw(key);
      return;
    }
    if (!key || key !== this.#key) {
      view.done.push(view.now);
      view.undone = [];
    }
    this.#key = key;
    view.now = next;
    this.draw(key);
    this.measure();
    this.write(Boolean(key));
  }

  /** Clears messages and runs of the previous state. */
  #settle() {
    this.knobs.refuse("");
    this.knobs.tellMisfits([]);
    for (const menu of this.element.querySelectorAll("details")) menu.open = false;
  }

  /** The control rests, so its next change is undone separately. */
  rest() {
    this.#key = "";
    this.write();
  }

  /** Undoes or redoes a change. @param {State[]} from @param {State[]} to */
  #step(from, to) {
    const state = from.pop();
    if (!state) return;
    to.push(this.view.now);
    this.view.now = state;
    this.#key = "";
    this.#settle();
    this.draw();
    this.measure();
    this.write();
  }
  undo() {
    this.#step(this.view.done, this.view.undone);
  }
  redo() {
    this.#step(this.view.undone, this.view.done);
  }

  /** Opens a saved or queued state. The serving process reports if the model has changed since. @param {string} address */
  async open(address) {
    const { view } = this;
    try {
      const { state } = await begin(view.model.model, address);
      if (view === this.#view) this.set(view.opened(state));
    } catch (error) {
      this.measured.say(reason(error), true);
    }
  }

  /** Changes the format of every selected layer that can have it. @param {Parameters<View["turned"]>[0]} change */
  turn(change, key = "") {
    const { formats, misfits } = this.view.turned(change);
    this.set({ formats }, key);
    this.knobs.tellMisfits(misfits);
  }

  /** Applies the best allocation for a typed budget. @param {string} text */
  async ask(text) {
    const { view } = this;
    const { now, model, settings, pinned } = view;
    const query = { run: model.profile, text, front: settings.front, state: view.address };
    this.knobs.asked = text;
    const asking = new URLSearchParams({ ...query, pins: [...pinned].join("_") });
    try {
      if (!model.profile) throw new Error("A budget needs a profile.");
      const answer = await json(`workbench/budget?${asking}`);
      if (answer.refused) throw new Error(answer.refused);
      const { unit, front, ms, formats: names, parts } = answer;
      if (view !== this.#view || now !== view.now) return; // the response belongs to another state
      view.known.add(parts);
      const formats = view.known.all(names);
      Object.assign(settings, { unit, front });
      if (ms) view.times.set(addressOf({ ...now, formats }), ms);
      this.set({ formats });
      this.write();
    } catch (error) {
      if (view !== this.#view || now !== view.now) return;
      this.knobs.refuse(reason(error));
      this.draw();
    }
  }

  /** @param {number} percent */
  prune(percent, key = "") {
    this.turn(({ width }) => ({ pattern: percent ? `${percent}%` : "", width }), key);
  }

  /** @param {number} block */
  restoreBlock(block) {
    const { now, layers, known } = this.view;
    this.set({
      formats: now.formats.map((form, i) => (layers[i].block === block ? known.dense : form)),
    });
  }

  /** Writes the address; `moving`: a slider is being dragged. */
  write(moving = false) {
    const { view, texts } = this;
    slimscope.address(
      {
        model: view.model.model,
        state: view.isDense ? "" : view.address,
        focus: view.layer.name,
        color: view.color,
        at: view.at,
        budget: "",
        view: texts.view === "text" ? "" : texts.view,
        bell: view.bell,
        prompt: texts.own,
      },
      moving,
    );
  }

  /** Focuses and selects a layer. @param {number} t */
  pick(t, keeps = false) {
    const { view } = this;
    view.hovered = -1;
    view.focus = t;
    if (!keeps) view.chosen = new Set([t]);
    this.draw();
    this.look();
    this.write();
  }

  /** @param {Set<number>} tensors */
  choose(tensors) {
    const { view } = this;
    view.chosen = tensors;
    if (!tensors.has(view.focus)) {
      // controls should change the shown histogram
      [view.focus] = tensors;
      this.look();
    }
    this.draw();
  }

  /** Pins the selected layers, or unpins them if all are pinned. */
  pin() {
    const { chosen, pinned } = this.view;
    const all = this.view.all((_, i) => pinned.has(i));
    for (const i of chosen) {
      if (all) pinned.delete(i);
      else pinned.add(i);
    }
    this.draw();
  }

  keep() {
    const { view } = this;
    const { address } = view;
    const { predicted, live } = view.summary(this.measured.of(address));
    const { nbytes } = view.predictions.totals(view.now.formats);
    const how = live ? "live" : "predicted";
    const others = view.kept.filter((each) => each.address !== address);
    const state = { address, nbytes, ratio: live ?? predicted ?? NaN, how };
    view.keep([...others, state].slice(-MOST_KEPT));
    this.draw();
  }

  /* --- measured ------------------------------------------------------------------------------ */

  /** Requests measurements of the state from the live model. */
  measure(atOnce = false) {
    const { view, texts, measured } = this;
    if (view.model.live.why) return;
    let want = ["loss", "text", "speed", "refine"];
    if (texts.view !== "text") want = texts.whole ? ["loss", "why", "refine"] : ["text"];
    measured.begin(view.address);
    texts.empty = measured.status.textContent ?? "";
    texts.begin();
    this.stream.ask(
      {
        model: view.model.model,
        state: view.address,
        want,
        prompt: texts.prompt,
        text: texts.whole,
        tokens: 48,
      },
      atOnce,
    );
  }

  /** @param {import("./live.js").LiveEvent} event */
  take(event) {
    const { view } = this;
    if (event.event === "opened" && view.now.identity !== event.identity) {
      view.now.identity = event.identity;
      this.write();
    }
    if (event.event === "applied") this.#exactly(event);
    this.measured.take(event);
    if (["waits", "error"].includes(event.event))
      this.texts.empty = this.measured.status.textContent ?? "";
    this.texts.take(event);
    if (["applied", "loss", "speed"].includes(event.event)) this.draw("measured");
  }

  /** Fetches the live weights of the focused layer if they differ from the preview.
      @param {{exactly?: boolean}} known */
  async #exactly({ exactly }) {
    const { view } = this;
    const instant = view.isInstant("pruner") && view.isInstant("quantizer");
    if (!exactly || instant || view.now.formats[view.focus] === view.known.dense) return;
    view.exact = await this.stream.tensor(view.model.model, view.address, view.layer.name);
    this.draw("measured");
  }

  /** Loads the weights of the focused layer. */
  async look() {
    const { view } = this;
    const { name } = view.layer;
    const tensor = await dense(view.model.model, name).catch(reason);
    if (view !== this.#view || name !== view.layer.name) return;
    view.tensor = tensor;
    this.draw("tensor");
    this.#exactly(this.measured.of(view.address));
    if (typeof tensor !== "string") tensor.prepareLater(view.score); // before a slider moves
  }

  /* --- panels and controls ------------------------------------------------------------------- */

  /** @param {string} why it is drawn: a knob that moves, or "hover", "measured", "tensor" */
  draw(why = "all") {
    const { view, cards } = this;
    const height = (/** @type {HTMLElement} */ card) => {
      const box = find(card, ".workbench-canvas");
      const known = this.#heights.get(card) ?? Math.max(120, box.clientHeight);
      this.#heights.set(card, known);
      return known;
    };
    const totals = view.predictions.totals(view.formats);
    if (why !== "measured" && why !== "tensor") this.map.draw(view, height(cards.map));
    if (why !== "hover") {
      const known = this.measured.of(addressOf({ ...view.now, formats: view.formats }));
      this.#button("undo").disabled = !view.done.length;
      this.#button("redo").disabled = !view.undone.length;
      this.#button("keep").disabled = view.isDense;
      this.knobs.draw(view, totals);
      this.layer.draw(view, why, height(cards.layer));
      this.measured.gauges(view, totals, known);
      this.front.draw(view, totals, known, height(cards.front));
    }
    explain(this.why, view);
  }

  /** @param {string} name */
  #button(name) {
    return find(this.element, `[data-do="${name}"]`, HTMLButtonElement);
  }
  /** @param {string} name */
  #select(name) {
    return find(this.element, `[data-knob="${name}"]`, HTMLSelectElement);
  }

  #wire() {
    const model = this.#select("model");
    model.onchange = () => {
      if (!model.value) return;
      slimscope.address({ state: "", focus: "", model: model.value });
      this.stream.end();
      this.show(load(model.value));
    };
    for (const name of /** @type {const} */ (["color", "at"])) {
      const select = this.#select(name);
      select.onchange = () => {
        this.view[name] = select.value;
        this.draw();
        this.write();
      };
    }
    this.#button("undo").onclick = () => this.undo();
    this.#button("redo").onclick = () => this.redo();
    this.#button("keep").onclick = () => this.keep();
    this.#button("table").onclick = () => showTable(this.view);
    this.#button("pin").onclick = () => this.pin();
    const groups = {
      bell: (/** @type {string} */ name) => {
        this.view.bell = name;
        this.draw();
        this.write();
      },
      view: (/** @type {string} */ name) => {
        this.texts.view = name;
        this.write();
        this.measure(true);
      },
    };
    for (const [group, act] of Object.entries(groups))
      find(this.element, `[data-group="${group}"]`).onclick = (event) => {
        const name = pressed(event)?.dataset.value;
        if (name !== undefined) act(name);
      };
    const fill = { run: fillRuns, export: fillExports };
    for (const [name, act] of Object.entries(fill)) {
      const menu = find(this.element, `[data-menu="${name}"]`, HTMLDetailsElement);
      menu.ontoggle = () => {
        if (menu.open) act(menu, this);
      };
    }
  }

  #wireKeys() {
    const held = this.#button("dense");
    held.onpointerdown = () => this.hold(true);
    held.onpointerup = held.onpointerleave = held.onblur = () => this.hold(false);
    document.addEventListener("keydown", (event) => {
      if (this.#view && this.#pressed(event)) event.preventDefault();
    });
    document.addEventListener("keyup", ({ key }) => {
      if (key === " ") this.hold(false);
    });
  }

  /** Shows the dense model while a button or key is held. @param {boolean} is */
  hold(is) {
    if (!this.#view || this.view.holding === is) return;
    this.view.holding = is;
    this.#button("dense").setAttribute("aria-pressed", String(is));
    this.texts.hold(is);
    this.draw();
  }

  /** Executes the action of a key; returns false if it has none. @param {KeyboardEvent} event */
  #pressed({ target, key, ctrlKey, metaKey, shiftKey }) {
    const at = target instanceof Element ? target : document.body;
    if (at.closest(TYPED)) return false;
    const letter = key.toLowerCase();
    if ((ctrlKey || metaKey) && letter === "z") {
      if (shiftKey) this.redo();
      else this.undo();
      return true;
    }
    if (key === " " && (at === this.#button("dense") || !at.closest("button, summary, a"))) {
      this.hold(true);
      return true;
    }
    if (letter !== "a" || at !== this.map.canvas) return false;
    this.choose(this.view.scope("all"));
    return true;
  }
}
