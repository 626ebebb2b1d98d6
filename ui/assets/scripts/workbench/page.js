/* The Workbench: a format for every layer, turned by knobs. What it does is predicted here at once, and measured by the
   live model behind the page as soon as nothing moves. */
import { measureAgain, number, share, still } from "../weights/canvas.js";
import { HistogramChart } from "../weights/histogram.js";
import { LayerMap } from "../weights/map.js";
import { DENSE, addressOf, colour, combined, fits, format, label, stateAt } from "./formats.js";
import { FrontChart } from "./front.js";
import { LiveStream } from "./live.js";
import { Measured } from "./measured.js";
import { fillMenu } from "./plans.js";
import { Predictions, profile } from "./predictions.js";
import { dense, stages } from "./tensor.js";
import { TextCard } from "./texts.js";

const NONE = "#9AA4B2", MOST_KEPT = 9;
const SWEEP = { to: 70, step: 2, ms: 110 }, REST_MS = 250;
const NAMES = { pruner: "pruned", quantizer: "rounded" };
let early = null; // what the address asks for, loaded while Gradio starts
const asked = () => Object.fromEntries(new URLSearchParams(location.search));

async function load(model) {
  const answer = await fetch(`slimscope/workbench/start?${new URLSearchParams(model ? { model } : {})}`), start = await answer.json();
  if (!answer.ok) throw Object.assign(new Error([start.what, start.why].filter(Boolean).join(" ")), { start });
  return { start, tables: await profile(start.profile) };
}

export function ahead() { early ??= load(asked().model); early.catch(() => {}); }

/** Draws the page into its element. */
export function start(element) {
  ahead();
  const page = new Page(element);
  Object.assign(window.slimscope, { changed: () => page.refresh(), back: () => { page.restore(); return true; } });
  page.show(early);
}

const plural = (many, word) => `${many.toLocaleString("en")} ${word}${many === 1 ? "" : "s"}`;
const megabytes = (nbytes) => `${number(nbytes / 1e6)} MB`;

class Page {
  hovered = -1; holding = false; playing = 0; tensor = null; opened = false; #key = ""; #rest = 0;

  constructor(element) {
    const part = (id) => element.querySelector(`#workbench-${id}`), canvas = (id) => part(id).querySelector("canvas");
    Object.assign(this, { element, part, undone: [], done: [], chosen: new Set(), pinned: new Set(), kept: [], exact: null,
      colour: "format", focus: 0, settings: { unit: "size", front: "" }, measured: new Measured(element),
      stream: new LiveStream((event) => this.take(event)) });
    this.map = new LayerMap(canvas("map"), { hover: (t) => { this.hovered = t; this.draw("hover"); }, pick: (t, keeps) => this.pick(t, keeps),
      choose: (tensors, adds) => this.choose(new Set(adds ? [...this.chosen, ...tensors] : tensors)) });
    this.histogram = new HistogramChart(canvas("histogram"), part("histogram").querySelector("output"), { brush: () => {}, clear: () => {} }, 200);
    this.front = new FrontChart(canvas("front"), { hover: (words) => { part("front").querySelector("output").textContent = words; },
      pick: (place) => this.open(this.kept[place].address) });
    this.texts = new TextCard(part("words"), { write: () => this.measure(true), restore: (block) => this.restoreBlock(block) });
    this.#wire();
    new ResizeObserver(() => { measureAgain(); this.#place(); if (this.data) this.draw(); }).observe(element);
    new MutationObserver(() => this.data && this.draw()).observe(document.body, { attributeFilter: ["class"] });
  }

  /** The charts fill what is left of the screen. */
  #place() {
    const all = this.element.querySelector(".workbench-all");
    all.style.setProperty("--top", `${Math.round(all.getBoundingClientRect().top + scrollY)}px`);
  }

  async show(coming) {
    const all = this.element.querySelector(".workbench-all"), notice = this.part("notice");
    try {
      const { start, tables } = await coming, query = asked();
      Object.assign(this, { model: start, layers: start.layers.map(([name, block, module, rows, columns]) => ({ name, block, module, rows, columns,
        label: block < 0 ? module.split(".").pop() : `Block ${block}, ${module.split(".").pop()}` })) });
      const outside = this.layers.filter(({ block }) => block < 0).map(({ module }) => module), modules = [...start.modules, ...outside];
      const cells = new Map(this.layers.map(({ block, module }, i) => [`${block < 0 ? "" : block} ${module}`, i]));
      this.data = { tensors: this.layers, modules, blocks: [...new Set(this.layers.map(({ block }) => block))].filter((block) => block >= 0),
        at: (block, module) => cells.get(`${outside.includes(module) ? "" : block} ${module}`) ?? -1 };
      this.predictions = new Predictions(this.layers, start.rest, tables);
      this.settings.front = [...this.predictions.fronts.keys()][0] ?? "";
      this.now = { identity: "", pruner: "magnitude", quantizer: "rtn", formats: this.layers.map(() => DENSE) };
      Object.assign(this, { undone: [], done: [], pinned: new Set(), opened: false });
      this.dense = this.now.formats;
      this.kept = JSON.parse(localStorage.getItem(`slimscope-workbench-${start.model}`) ?? "[]");
      this.chosen = this.#scope("all");
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
      if (newest) this.#options("model", [["Choose a model", ""], ...newest.start.models.map(([title, name]) => [title, name])], "");
    }
  }

  /** Takes what an address asks for. */
  #read(query) {
    const i = this.layers.findIndex(({ name }) => name === query.focus);
    this.focus = i >= 0 ? i : Math.max(0, this.layers.findIndex(({ block, module }) => block === this.data.blocks[this.data.blocks.length >> 1] && module.endsWith("down_proj")));
    if (query.colour && this.element.querySelector(`[data-knob="colour"] [value="${CSS.escape(query.colour)}"]`)) this.colour = query.colour;
    this.texts.view = query.view === "why" ? "why" : "text";
    if (query.prompt) this.texts.prompt = query.prompt.slice(0, 400);
    if (!query.state) return;
    try {
      const state = stateAt(query.state, this.layers.length);
      const unknown = state.formats.findIndex((text, at) => !fits(format(text), this.layers[at].columns) || (format(text).pattern && this.layers[at].block < 0));
      if (unknown >= 0) throw new Error(`${this.layers[unknown].label} cannot be stored as ${state.formats[unknown]}.`);
      this.now = state;
    } catch (error) {
      this.part("notice").textContent = `The state of the address cannot be opened: ${error.message} The dense model is shown.`;
    }
  }

  /** What is missing, and how to get it. */
  #notice() {
    const { model } = this, box = document.createElement("p"), line = (words) => box.append(words, " ");
    box.className = "quiet";
    if (!model.profile || model.partial) {
      line(model.partial ? `${model.profile} has profiled ${this.predictions.rows.size} of ${this.layers.length} layers; the others have no prediction yet.`
        : `${model.title} has no profile: nothing can be predicted, and a budget not be solved.`);
      if (!model.partial) {
        const button = Object.assign(document.createElement("button"), { type: "button", className: "small-button", textContent: "Queue a profile" });
        button.onclick = () => this.#profile(button);
        box.append(button, " ");
      }
    }
    if (model.live.why) line(`Nothing is measured live: ${model.live.why} ${model.live.do ?? ""}`);
    this.part("notice").append(box);
    if (!box.textContent) box.remove();
  }

  async #profile(button) {
    button.disabled = true;
    const answer = await fetch("slimscope/api/submit/profile?preset=default", { method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: this.model.model }) }), row = await answer.json();
    const said = answer.ok ? Object.assign(document.createElement("a"), { href: `run?id=${row.run}`, textContent: `${row.run} is queued` }) : `${row.what} ${row.why}`;
    button.replaceWith(said);
  }

  /** A profile that has moved on. */
  async refresh() {
    if (!this.model || (this.model.profile && !this.model.partial)) return;
    const fresh = await load(this.model.model).catch(() => null);
    if (!fresh || (fresh.start.profile === this.model.profile && fresh.start.partial === this.model.partial && fresh.tables?.etag === this.etag)) return;
    this.etag = fresh.tables?.etag;
    this.show(Promise.resolve(fresh));
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

  /** What is shown: the state, or dense while that is held. */
  get formats() { return this.holding ? this.dense : this.now.formats; }
  get address() { return addressOf(this.now); }
  get isDense() { return this.now.formats.every((text) => text === DENSE); }

  /** Takes a new state; those of one `key` in a row are undone together. */
  set(parts, key = "") {
    const next = { ...this.now, ...parts };
    if (addressOf(next) === this.address) return;
    if (!key || key !== this.#key) { this.done.push(this.now); this.undone = []; }
    this.#key = key;
    this.now = next;
    this.draw(key);
    this.measure();
    this.write();
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

  open(address) { this.set(stateAt(address, this.layers.length)); }

  /** Changes the format of every layer that is chosen, where that fits it. */
  turn(change, key) {
    const to = (text, i) => {
      const { pattern, width } = change(format(text)), wanted = combined(this.layers[i].block < 0 ? "" : pattern, width);
      return fits(format(wanted), this.layers[i].columns) ? wanted : text;
    };
    this.set({ formats: this.now.formats.map((text, i) => (this.chosen.has(i) ? to(text, i) : text)) }, key);
  }

  prune(pattern, key = "") { this.turn(({ width }) => ({ pattern, width }), key); }

  restoreBlock(block) {
    this.set({ formats: this.now.formats.map((text, i) => (this.layers[i].block === block ? DENSE : text)) });
  }

  write() {
    clearTimeout(this.#rest); // browsers allow few changes of an address in a second
    this.#rest = setTimeout(() => window.slimscope.address({ model: this.model.model, state: this.isDense ? "" : this.address, focus: this.layers[this.focus].name,
      colour: this.colour === "format" ? "" : this.colour, view: this.texts.view === "text" ? "" : this.texts.view, prompt: this.texts.own }), REST_MS);
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
    this.draw();
  }

  #scope(name) {
    const { block } = this.layers[this.focus], inside = (each) => each.block >= 0;
    const test = { all: inside, attention: (each) => inside(each) && /attn|attention/.test(each.module), mlp: (each) => inside(each) && !/attn|attention/.test(each.module),
      block: (each) => each.block === block, outside: (each) => !inside(each) }[name] ?? ((each) => each.module === name);
    return new Set(this.layers.flatMap((each, i) => (test(each) ? [i] : [])));
  }

  /** The name of a scope that is what is chosen; "" where it is none. */
  get #scoped() {
    const same = (set) => set.size === this.chosen.size && [...set].every((i) => this.chosen.has(i));
    return ["all", "attention", "mlp", "block", "outside", ...this.model.modules].find((name) => same(this.#scope(name))) ?? "";
  }

  /* --- measured ------------------------------------------------------------------------------ */

  /** Asks the live model about the state. */
  measure(at_once = false) {
    if (this.model.live.why) return;
    const want = this.texts.view === "why" ? ["loss", "speed", "why", "refine"] : ["loss", "text", "speed", "refine"];
    this.measured.begin(this.address);
    this.texts.begin(this.address);
    this.stream.ask({ model: this.model.model, state: this.address, want, prompt: this.texts.prompt, text: this.texts.whole, tokens: 48 }, at_once);
  }

  /** An event of the live model. */
  take(event) {
    if (event.event === "opened") Object.assign(this.now, { identity: event.identity });
    if (event.event === "applied") this.#exactly(event);
    this.measured.take(event);
    this.texts.take(event, this.address);
    if (["applied", "loss", "speed"].includes(event.event)) this.draw("measured");
  }

  /** The live weights of the layer that is looked at, where they are not what a knob shows at once. */
  async #exactly({ exactly }) {
    const text = this.now.formats[this.focus];
    if (!exactly || (this.now.pruner === "magnitude" && this.now.quantizer === "rtn") || text === DENSE) return;
    this.exact = await this.stream.tensor(this.model.model, this.address, this.layers[this.focus].name).catch(() => null);
    this.draw("measured");
  }

  /** Loads the weights of the layer that is looked at. */
  async look() {
    const { name } = this.layers[this.focus];
    this.tensor = await dense(this.model.model, name).catch((error) => error.message);
    if (name === this.layers[this.focus].name) this.draw("tensor");
    if (typeof this.tensor !== "string") setTimeout(() => this.tensor.prepare?.(this.score)); // before a slider moves
  }

  /** What layers are pruned by at once; by Wanda's score what is computed block by block later, too. */
  get score() { return this.now.pruner === "magnitude" ? "magnitude" : "wanda"; }

  /* --- drawing ------------------------------------------------------------------------------- */

  draw(why = "all") {
    const totals = this.predictions.totals(this.formats);
    if (why !== "measured" && why !== "tensor") this.#map();
    if (why !== "hover") {
      this.#knobs(totals);
      this.#histogram(why);
      const known = this.measured.of(addressOf({ ...this.now, formats: this.formats }));
      this.measured.gauges(totals, known, this);
      this.#front(totals, known);
    }
    this.#why();
  }

  #height(id) { return Math.max(120, this.part(id).querySelector(".workbench-canvas").clientHeight); }

  #map() {
    const { data, predictions, formats, colour: by } = this, shown = { data, picked: this.focus, height: this.#height("map"), even: false, log: false, unit: "" };
    const reference = this.#reference();
    const figures = { predicted: ["Predicted loss, nats a token", (text, i) => predictions.figure("predicted", i, text)],
      sensitivity: [`Alone at ${label(format(reference))}, nats a token`, (_, i) => predictions.figure("predicted", i, reference)],
      error: ["Output error, %", (text, i) => 100 * predictions.figure("error", i, text)], bytes: ["MB", (text, i) => predictions.nbytes(i, text) / 1e6] };
    const used = [...new Set(formats)].sort((a, b) => predictions.nbytes(0, b) - predictions.nbytes(0, a));
    const [words, value] = figures[by] ?? ["", () => NaN], values = formats.map(value), chosen = this.chosen.size < this.#scope("all").size ? this.chosen : null;
    const colours = by === "format" ? formats.map((text) => colour(format(text)) ?? NONE) : null;
    this.map.draw({ ...shown, values, label: words, log: by !== "bytes", colours, chosen, pinned: this.pinned,
      key: colours && used.map((text) => ({ words: label(format(text)), colour: colour(format(text)) ?? NONE })) });
    const many = (text) => formats.filter((each) => each === text).length;
    const worst = values.reduce((best, each, i) => (Number.isFinite(each) && !(each <= values[best]) ? i : best), -1);
    const title = colours ? (used.length === 1 ? `All ${plural(formats.length, "layer")}: ${label(format(used[0]))}` : used.map((text) => `${many(text)} × ${label(format(text))}`).join(", "))
      : worst < 0 || !values[worst] ? `${words}: ${this.isDense ? "nothing is changed yet" : "not known"}` : `${words}: most in ${this.layers[worst].label.replace("Block", "block")}, ${number(values[worst])}`;
    this.part("map").querySelector("h2").textContent = title;
    this.part("map").querySelector("canvas").dataset.words = title;
    const t = this.hovered, place = this.part("map").querySelector("output");
    place.textContent = t < 0 ? "" : `${this.layers[t].label}: ${label(format(formats[t]))}${colours ? "" : ` · ${number(values[t])}`}`;
  }

  /** The format that sensitivities are of: that of most layers, else one in the middle of the profile. */
  #reference() {
    const used = this.now.formats.filter((text) => text !== DENSE), known = this.predictions.formats;
    const most = [...new Set(used)].sort((a, b) => used.filter((each) => each === b).length - used.filter((each) => each === a).length);
    return most.find((text) => known.includes(text)) ?? known.find((text) => text.startsWith("int3")) ?? known[0] ?? DENSE;
  }

  #knobs(totals) {
    const { model, part, chosen } = this, forms = [...chosen].map((i) => format(this.formats[i])), one = (value) => {
      const all = [...new Set(forms.map(value))];
      return all.length === 1 ? all[0] : null;
    };
    const drops = forms.map(({ drop }) => drop), low = Math.min(...drops), high = Math.max(...drops), slider = part("sparsity");
    const scope = this.#scoped, single = chosen.size === 1 ? this.layers[[...chosen][0]].label : "";
    part("knobs").querySelector("h2").textContent = single || plural(chosen.size, "layer");
    this.#options("scope", [...(scope ? [] : [["Picked", ""]]), ["All blocks", "all"], ["Attention", "attention"], ["MLP", "mlp"], [`Block ${this.layers[this.focus].block}`, "block"],
      ...model.modules.map((name) => [name.split(".").pop(), name]), ["Embedding, head", "outside"]], scope);
    const mean = drops.reduce((sum, each) => sum + each, 0) / (drops.length || 1);
    if (slider !== document.activeElement || one(({ drop }) => drop) !== null) slider.value = Math.round(100 * mean);
    slider.nextElementSibling.textContent = high - low < 1e-9 ? share(low, 0) : `${share(low, 0).replace(/\s%/, "")} to ${share(high, 0)}`;
    slider.disabled = [...chosen].every((i) => this.layers[i].block < 0);
    this.#pressed("pattern", one(({ pattern }) => pattern), [["None", ""], ...model.patterns.map((text) => [text, text])]);
    this.#pressed("bits", one(({ bits }) => String(bits)), [["16", "16"], ...model.widths.toReversed().map((bits) => [String(bits), String(bits)])]);
    this.#options("group", [...model.groups.map((each) => [`Groups of ${each}`, String(each)]), ["Whole rows", "0"]], String(one(({ group, width }) => (width ? group : this.group)) ?? this.group));
    for (const knob of ["pruner", "quantizer"]) this.element.querySelector(`[data-knob="${knob}"]`).value = this.now[knob];
    const slow = ["pruner", "quantizer"].map((knob) => [knob, model[`${knob}s`].find(({ name }) => name === this.now[knob])]).filter(([, each]) => each && !each.instant);
    this.element.querySelector(".workbench-made").textContent = slow.length
      ? `${slow.map(([knob, each]) => `${each.label} ${NAMES[knob]}`).join(", ")}: at once by its score, as a run makes it block by block` : "At once as a run makes it";
    for (const [name, off] of [["undo", !this.done.length], ["redo", !this.undone.length], ["keep", this.isDense]]) this.button(name).disabled = off;
    this.button("pin").textContent = chosen.size && [...chosen].every((i) => this.pinned.has(i)) ? "Unpin" : "Pin";
    this.#budget(totals);
  }

  button(name) { return this.element.querySelector(`[data-do="${name}"]`); }

  get group() { return this.settings.group ?? (this.predictions.formats.map(format).find(({ group, width }) => width && group)?.group ?? this.model.groups[1] ?? 0); }

  #budget(totals) {
    const slider = this.part("budget"), { unit, front } = this.settings, none = !front;
    slider.closest(".workbench-knob").hidden = none;
    if (none) return;
    const value = unit === "loss" ? Math.exp(totals.loss) - 1 : unit === "size" ? totals.nbytes : totals.read;
    if (slider !== document.activeElement) slider.value = 1000 * this.#ends().part(value);
    slider.nextElementSibling.textContent = unit === "loss" ? `+${share(value)}` : megabytes(value);
  }

  /** The budgets between which the slider moves, on a log scale where they are losses. */
  #ends() {
    const { unit, front } = this.settings, points = this.predictions.fronts.get(front);
    const [first, last] = [points[0], points.at(-1)].map((point) => this.predictions.totals(this.predictions.mix(point, this.now.formats, this.pinned)));
    const [low, high] = unit === "loss" ? [1e-3, Math.max(0.01, Math.min(10, Math.exp(first.loss) - 1))] : unit === "size" ? [first.nbytes, last.nbytes] : [first.read, last.read];
    const log = unit === "loss";
    return { value: (part) => (log ? low * (high / low) ** part : low + part * (high - low)),
      part: (value) => (log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low || 1)) };
  }

  solve() {
    const { unit, front } = this.settings, wanted = this.#ends().value(this.part("budget").value / 1000), { predictions } = this;
    const within = { size: (each) => each.nbytes <= wanted + 1, read: (each) => each.read <= wanted + 1, loss: (each) => Math.exp(each.loss) - 1 <= wanted }[unit];
    this.set({ formats: predictions.solve(front, this.now.formats, this.pinned, within, unit === "loss") }, "budget");
  }

  #histogram(why) {
    const { tensor, part } = this, t = this.focus, layer = this.layers[t], text = this.formats[t], title = part("histogram").querySelector("h2");
    const canvas = part("histogram").querySelector("canvas");
    canvas.hidden = !tensor || typeof tensor === "string";
    if (canvas.hidden || tensor.name !== layer.name) {
      title.textContent = typeof tensor === "string" ? `${layer.label}: ${tensor}` : layer.label;
      return;
    }
    const exact = this.exact?.name === layer.name && this.exact.state === this.address && !this.holding ? this.exact : null;
    const made = exact ?? tensor.histogram(text, this.score);
    const live = { name: "live", label: label(format(text)), colour: colour(format(text)) ?? NONE, dash: "solid", main: true };
    this.histogram.height = this.#height("histogram");
    const found = stages(tensor, layer, made, live), moves = !["hover", "measured", "tensor", "sparsity", "budget"].includes(why);
    this.histogram.draw({ data: found, t: 0, s: text === DENSE ? 0 : 1, shown: [0], other: null, curve: "histogram", log: false, brush: null }, moves);
    const zeros = made.tails[1] / made.tails[0];
    title.textContent = `${layer.label}: ${label(format(text))}${zeros > 5e-4 ? `, ${share(zeros)} zeros` : ""}`;
    canvas.dataset.words = title.textContent;
  }

  #front(totals, known) {
    const { predictions } = this, dense = predictions.totals(this.dense).nbytes, ratio = (loss) => Math.exp(loss);
    const lines = [...predictions.fronts].map(([name, points]) => ({ colour: name === "pruned" ? "#D55E00" : "#0072B2",
      points: points.map(({ nbytes, loss }) => ({ nbytes, ratio: ratio(loss) })) }));
    const own = known?.ratio ?? (totals.unknown ? NaN : ratio(totals.loss)), said = (nbytes, value, how) => `${megabytes(nbytes)}, ${number(value)} × dense, ${how}`;
    this.front.draw({ lines, height: this.#height("front"), measured: Boolean(known?.ratio), dense: { nbytes: dense, ratio: 1, words: `Dense, ${megabytes(dense)}` },
      now: { nbytes: totals.nbytes, ratio: own, words: said(totals.nbytes, own, known?.ratio ? "measured" : "predicted") },
      kept: this.kept.map((each, place) => ({ ...each, words: `${place + 1}: ${said(each.nbytes, each.ratio, each.how)}` })) });
    const box = this.element.querySelector(".workbench-kept"), key = JSON.stringify(this.kept);
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    const button = (words, title, act, css = "") => Object.assign(document.createElement("button"), { type: "button", textContent: words, title, ariaLabel: title, onclick: act, className: css });
    box.replaceChildren(...(this.kept.length ? this.kept.flatMap((each, place) => [
      button(`${place + 1} · ${megabytes(each.nbytes)} · ${number(each.ratio)} ×`, `Open state ${place + 1}`, () => this.open(each.address)),
      button("×", `Drop state ${place + 1}`, () => this.#keep(this.kept.toSpliced(place, 1)), "drop")]) : ["Keep puts a state here: a point to come back to."]));
  }

  #keep(kept) {
    this.kept = kept;
    localStorage.setItem(`slimscope-workbench-${this.model.model}`, JSON.stringify(kept));
    this.draw();
  }

  keep() {
    const totals = this.predictions.totals(this.now.formats), known = this.measured.of(this.address);
    const state = { address: this.address, nbytes: totals.nbytes, ratio: known?.ratio ?? Math.exp(totals.loss), how: known?.ratio ? "measured" : "predicted" };
    this.#keep([...this.kept.filter(({ address }) => address !== this.address), state].slice(-MOST_KEPT));
  }

  /** Why the layer under the pointer, or the one looked at, has its format: its price and that of its neighbours. */
  #why() {
    const { predictions } = this, t = this.hovered >= 0 ? this.hovered : this.focus, text = this.formats[t], box = this.element.querySelector(".workbench-why");
    const all = this.formats.map((each, i) => predictions.figure("predicted", i, each)), own = all[t], whole = predictions.totals(this.formats).loss;
    const name = Object.assign(document.createElement("strong"), { textContent: `${this.layers[t].label}, ${label(format(text))}` });
    if (!predictions.run) { box.replaceChildren(name, ": a profile would say what this layer loses in each format."); return; }
    const rank = all.filter((each) => each > own).length + 1, others = predictions.alternatives(t, text)
      .map(({ text: each, more, loss }) => `${label(format(each))}: ${number(loss, 2)} nats, ${megabytes(Math.abs(more))} ${more < 0 ? "less" : "more"}`);
    const first = text === DENSE ? " loses nothing." : Number.isFinite(own)
      ? ` loses ${number(own, 2)} nats a token, ${share(own / (whole || 1))} of all, rank ${rank} of ${all.length}.` : " has no prediction in this format.";
    box.replaceChildren(name, first, others.length ? ` Instead ${others.join("; ")}.` : "", this.pinned.has(t) ? " Pinned ◆." : "");
  }

  /* --- controls ------------------------------------------------------------------------------ */

  #options(knob, offered, value) {
    const select = this.element.querySelector(`[data-knob="${knob}"]`), key = JSON.stringify(offered);
    if (select.dataset.offered !== key) select.replaceChildren(...offered.map(([words, each]) => new Option(words, each)));
    select.dataset.offered = key; // an open list is not taken out of a person's hand
    select.value = value;
  }

  /** Buttons of which the one of that value is taken. */
  #pressed(group, value, offered) {
    const box = this.element.querySelector(`[data-group="${group}"]`);
    if (box.children.length !== offered.length)
      box.replaceChildren(...offered.map(([words, each]) => Object.assign(document.createElement("button"), { type: "button", textContent: words, value: each })));
    for (const button of box.children) {
      button.setAttribute("aria-pressed", String(button.value === value));
      const shade = colour(format(group === "bits" ? combined("", button.value === "16" ? "" : this.#width(button.value)) : button.value || DENSE));
      if (shade) button.style.setProperty("--format", shade);
    }
  }

  #width(bits) { return this.group ? `int${bits}-g${this.group}` : `int${bits}`; }

  #fill() {
    const { model } = this, methods = (all) => all.map(({ name, label: words }) => [words, name]);
    this.#options("model", model.models.map(([title, name, profiled]) => [profiled ? title : `${title} (no profile)`, name]), model.model);
    this.#options("pruner", methods(model.pruners), this.now.pruner);
    this.#options("quantizer", methods(model.quantizers), this.now.quantizer);
    this.#options("colour", [...this.element.querySelectorAll('[data-knob="colour"] option')].map((each) => [each.textContent, each.value]), this.colour);
    this.#options("front", [...this.predictions.fronts.keys()].map((name) => [name === "pruned" ? "by sparsity" : "by bits", name]), this.settings.front);
    this.button("play").disabled = false;
  }

  #wire() {
    const { element, part } = this, on = (selector, event, act) => element.querySelector(selector).addEventListener(event, act);
    const knob = (name, act) => on(`[data-knob="${name}"]`, "change", ({ target }) => act(target.value));
    knob("model", (name) => { if (name) { window.slimscope.address({ state: "", focus: "", model: name }); this.stream.end(); this.show(load(name)); } });
    knob("colour", (name) => { this.colour = name; this.draw(); this.write(); });
    knob("scope", (name) => { if (name) this.choose(this.#scope(name)); });
    knob("group", (size) => { this.settings.group = Number(size); this.turn((form) => ({ pattern: form.pattern, width: form.width && this.#width(form.bits) })); this.draw(); });
    for (const name of ["pruner", "quantizer"]) knob(name, (value) => this.set({ [name]: value }));
    for (const name of ["unit", "front"]) knob(name, (value) => { this.settings[name] = value; this.draw(); });
    part("sparsity").oninput = ({ target }) => this.prune(Number(target.value) ? `${target.value}%` : "", "sparsity");
    part("budget").oninput = () => this.solve();
    for (const id of ["sparsity", "budget"]) part(id).onchange = () => { this.#key = ""; };
    on('[data-group="pattern"]', "click", ({ target }) => { if (target.matches("button")) this.prune(target.value); });
    on('[data-group="bits"]', "click", ({ target }) => {
      if (target.matches("button")) this.turn(({ pattern }) => ({ pattern, width: target.value === "16" ? "" : this.#width(target.value) }));
    });
    const hold = (is) => { if (this.data && this.holding !== is) { this.holding = is; this.button("dense").setAttribute("aria-pressed", String(is)); this.texts.hold(is); this.draw(); } };
    Object.assign(this.button("dense"), { onpointerdown: () => hold(true), onpointerup: () => hold(false), onpointerleave: () => hold(false), onblur: () => hold(false) });
    const acts = { undo: () => this.step(this.done, this.undone), redo: () => this.step(this.undone, this.done), keep: () => this.keep(), play: () => this.play(),
      pin: () => { const all = [...this.chosen].every((i) => this.pinned.has(i)); for (const i of this.chosen) this.pinned[all ? "delete" : "add"](i); this.draw(); } };
    for (const [name, act] of Object.entries(acts)) this.button(name).onclick = act;
    on('[data-group="view"]', "click", ({ target }) => { if (target.matches("button")) { this.texts.view = target.dataset.value; this.write(); this.measure(true); } });
    document.addEventListener("keydown", (event) => this.#key_down(event, hold));
    document.addEventListener("keyup", ({ key }) => { if (key === " ") hold(false); });
    for (const menu of element.querySelectorAll("[data-menu]")) menu.ontoggle = () => { if (menu.open) fillMenu(menu, this); };
  }

  #key_down(event, hold) {
    if (!this.data || event.target.closest?.("input:not([type='range']), textarea, select, dialog, [contenteditable]")) return;
    const control = event.ctrlKey || event.metaKey, pressed = event.key.toLowerCase();
    if (control && pressed === "z") this.step(...(event.shiftKey ? [this.undone, this.done] : [this.done, this.undone]));
    else if (event.key === " " && (event.target === this.button("dense") || !event.target.closest?.("button, summary, a"))) hold(true);
    else if (event.target === this.part("map").querySelector("canvas") && pressed === "a") this.choose(this.#scope("all"));
    else return;
    event.preventDefault();
  }

  /** Moves the sparsity of what is chosen from 0 to 70 %. */
  play() {
    const button = this.button("play"), stop = () => { clearInterval(this.playing); this.playing = 0; this.#key = ""; button.textContent = "Play 0 to 70 %"; };
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
