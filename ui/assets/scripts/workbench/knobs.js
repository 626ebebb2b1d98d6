/* Controls of the workbench: a budget for all layers, formats of the selected layers, and methods. */
import { share } from "../weights/canvas.js";
import { offer } from "../weights/tables.js";
import { button, pressed, tell } from "./elements.js";
import { plural } from "./panels.js";

const { find } = window.slimscope;

/** @typedef {import("./view.js").View} View */
/** @typedef {import("./formats.js").Format} Format */
/** @typedef {import("./formats.js").Method} Method */
/** @typedef {[words: string, value: string]} Offer */

/** @type {Method[]} */
const METHODS = ["pruner", "quantizer"];

/** Amount of a budget as text. @param {import("./view.js").Unit} unit @param {number} value */
function typed(unit, value) {
  const few = (/** @type {number} */ x, digits = 3) => String(Number(x.toPrecision(digits)));
  if (!Number.isFinite(value)) return "";
  switch (unit) {
    case "size":
      return `${few(value / 1e6)} MB`;
    case "loss":
      return `loss ${few(1 + value, 4)} ×`;
    case "sparsity":
      return `${few(100 * value)} %`;
    default:
      return `${few(value)} ${unit}`;
  }
}

/** @param {string} unit @returns {unit is import("./view.js").Unit} */
const isUnit = (unit) => ["size", "bits", "sparsity", "loss", "ms"].includes(unit);

export class Knobs {
  /** @param {HTMLElement} card @param {import("./page.js").Page} page */
  constructor(card, page) {
    this.card = card;
    this.page = page;
    this.sparsity = find(card, "#workbench-sparsity", HTMLInputElement);
    this.budget = find(card, "#workbench-budget", HTMLInputElement);
    this.text = find(card, "#workbench-budget-text", HTMLInputElement);
    this.refusal = find(card, "#workbench-budget-refusal");
    /** @type {string | null} */
    this.asked = null; // a typed budget that is infeasible or not solved yet
    /** @type {[front: string, unit: string][]} */
    this.budgets = [...this.#select("budget").options].map(({ value }) => {
      const [front, unit] = value.split(" ");
      return [front, unit];
    });
    this.labels = [...this.#select("budget").options].map(({ text }) => text);
    this.#wire();
  }

  /** @param {string} name */
  #select(name) {
    return find(this.card, `[data-knob="${name}"]`, HTMLSelectElement);
  }

  /** @param {string} name @param {(value: string) => void} act */
  #on(name, act) {
    const select = this.#select(name);
    select.addEventListener("change", () => act(select.value));
  }

  #wire() {
    const { page, sparsity, budget } = this;
    this.#on("scope", (name) => {
      if (name) page.choose(page.view.scope(name));
    });
    this.#on("group", (size) => {
      page.view.settings.group = Number(size);
      page.turn(({ pattern, width, bits }) => ({ pattern, width: width && page.view.width(bits) }));
      page.draw();
    });
    for (const name of METHODS) this.#on(name, (value) => page.set({ [name]: value }));
    this.#on("budget", (value) => {
      const [front, unit] = value.split(" ");
      if (isUnit(unit)) Object.assign(page.view.settings, { unit, front });
      this.refuse("");
      page.draw();
    });
    this.text.onchange = () => page.ask(this.text.value);
    this.text.onkeydown = (event) => {
      if (event.key === "Enter") this.text.blur(); // which raises the change
    };
    sparsity.oninput = () => page.prune(Number(sparsity.value), "sparsity");
    budget.oninput = () =>
      page.set({ formats: page.view.solved(Number(budget.value) / 1000) }, "budget");
    sparsity.onchange = budget.onchange = () => page.rest();
    this.#group("pattern").onclick = (event) => {
      const pattern = pressed(event)?.value;
      if (pattern !== undefined) page.turn(({ width }) => ({ pattern, width }));
    };
    this.#group("bits").onclick = (event) => {
      const bits = pressed(event)?.value;
      if (bits) page.turn(({ pattern }) => ({ pattern, width: page.view.width(Number(bits)) }));
    };
  }

  /** @param {string} name */
  #group(name) {
    return find(this.card, `[data-group="${name}"]`);
  }

  /** @param {View} view @param {import("./predictions.js").Totals} totals of what is shown */
  draw(view, totals) {
    const { chosen } = view;
    const forms = [...chosen].map((i) => view.formats[i]);
    const [single] = chosen;
    const title = chosen.size === 1 ? view.layers[single].label : plural(chosen.size, "layer");
    tell(find(this.card, "h2"), title);
    const isPinned = chosen.size && view.all((_, i) => view.pinned.has(i));
    tell(find(this.card, '[data-do="pin"]'), isPinned ? "Unpin" : "Pin");
    this.#scopes(view);
    this.#drawSparsity(view, forms);
    this.#drawFormats(view, forms);
    for (const name of METHODS) this.#select(name).value = view.now[name];
    const slow = view.slow.map(([, method]) => method);
    const made = slow.length
      ? `Preview now; exact result by ${slow.join(" and ")} follows`
      : "Exact at once";
    tell(find(this.card, ".workbench-made"), made);
    this.#drawBudget(view, totals);
  }

  /** @param {View} view @param {Format[]} forms of the chosen layers */
  #drawFormats(view, forms) {
    const { known, model } = view;
    /** Common value of all elements; null if they differ.
        @template T @param {(form: Format) => T} value */
    const one = (value) => {
      const [first, ...others] = new Set(forms.map(value));
      return others.length ? null : (first ?? null);
    };
    const patterns = ["", ...model.patterns].map((text) => ({
      words: text || "None",
      value: text,
      form: known.of(text, ""),
    }));
    const widths = [16, ...model.widths.toReversed()].map((bits) => ({
      words: String(bits),
      value: String(bits),
      form: known.of("", view.width(bits)),
    }));
    const pattern = one((form) => form.pattern);
    const bits = one((form) => String(form.bits));
    this.#buttons("pattern", pattern, patterns);
    this.#buttons("bits", bits, widths);
    const group = one(({ group: size, width }) => (width ? size : view.group)) ?? view.group;
    /** @type {Offer[]} */
    const groups = model.groups.map((size) => [`Groups of ${size}`, String(size)]);
    offer(this.#select("group"), [...groups, ["Whole rows", "0"]], String(group));
  }

  /** @param {View} view */
  #scopes(view) {
    const { scoped } = view;
    /** @type {Offer[]} */
    const modules = view.model.modules.map((name) => [name.split(".").pop() ?? "", name]);
    /** @type {Offer[]} */
    const picked = scoped ? [] : [["Picked", ""]];
    /** @type {Offer[]} */
    const scopes = [
      ...picked,
      ["All blocks", "all"],
      ["Attention", "attention"],
      ["MLP", "mlp"],
      [`Block ${view.layer.block}`, "block"],
      ...modules,
      ["Embedding, head", "outside"],
    ];
    offer(this.#select("scope"), scopes, scoped);
  }

  /** @param {View} view @param {Format[]} forms of the chosen layers */
  #drawSparsity(view, forms) {
    const slider = this.sparsity;
    const drops = forms.map(({ drop }) => drop);
    const [low, high] = [Math.min(...drops), Math.max(...drops)];
    const mean = drops.reduce((sum, each) => sum + each, 0) / (drops.length || 1);
    const same = high - low < 1e-9;
    if (slider !== document.activeElement || new Set(drops).size === 1)
      slider.value = String(Math.round(100 * mean));
    const from = share(low, 0).replace(/\s%/, "");
    const words = same ? share(low, 0) : `${from} to ${share(high, 0)}`;
    if (slider.nextElementSibling) tell(slider.nextElementSibling, words);
    slider.disabled = view.all(({ block }) => block < 0);
  }

  /** @param {View} view @param {import("./predictions.js").Totals} totals */
  #drawBudget(view, totals) {
    const slider = this.budget;
    const { unit, front } = view.settings;
    slider.closest(".workbench-knob")?.toggleAttribute("hidden", !front);
    if (!front) return;
    this.#select("budget").value = `${front} ${unit}`;
    const value = view.spent(totals);
    const part = view.budgets.part(value);
    if (slider !== document.activeElement && Number.isFinite(part))
      slider.value = String(1000 * part);
    const words = typed(unit, value);
    slider.setAttribute("aria-valuetext", words);
    if (this.text !== document.activeElement) this.text.value = this.asked ?? words;
  }

  /** Shows why the typed budget is infeasible; "": the field shows the budget of the state. @param {string} words */
  refuse(words) {
    if (!words) this.asked = null;
    this.refusal.textContent = words;
    this.text.setAttribute("aria-invalid", String(Boolean(words)));
  }

  /** Lists the selected layers that cannot have the format. @param {import("./view.js").Misfit[]} misfits */
  tellMisfits(misfits) {
    const inputs = [...new Set(misfits.map(({ columns }) => columns))].join(", ");
    find(this.card, ".workbench-misfit").textContent = misfits.length
      ? `${plural(misfits.length, "layer")} unchanged. ${misfits[0].form.label} does not divide ${inputs} inputs.`
      : "";
  }

  /** Buttons in the colors of formats, with the current value pressed.
      @param {string} group @param {string | null} value @param {{words: string, value: string, form: Format}[]} offered */
  #buttons(group, value, offered) {
    const box = this.#group(group);
    if (box.children.length !== offered.length)
      box.replaceChildren(
        ...offered.map((each) => button(each.words, () => {}, { value: each.value })),
      );
    box.querySelectorAll("button").forEach((each, i) => {
      each.setAttribute("aria-pressed", String(each.value === value));
      const hue = offered[i].form.color;
      if (hue) each.style.setProperty("--format", hue);
    });
  }

  /** Fills the lists of methods and budgets. @param {View} view */
  fill({ model, now, predictions, settings }) {
    const same = (/** @type {string} */ name) => /** @type {Offer} */ ([name, name]);
    offer(this.#select("pruner"), model.pruners.map(same), now.pruner);
    offer(this.#select("quantizer"), model.quantizers.map(same), now.quantizer);
    const offered = this.budgets.flatMap(([front, unit], i) => {
      const best = predictions.fronts.get(front);
      const isSolved = best && (unit !== "ms" || best.timed.length);
      return isSolved ? [/** @type {Offer} */ ([this.labels[i], `${front} ${unit}`])] : [];
    });
    offer(this.#select("budget"), offered, `${settings.front} ${settings.unit}`);
  }
}
