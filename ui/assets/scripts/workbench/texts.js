/* Text of the live model beside that of the dense one; and which blocks break which words of it. */
import { Trace } from "./trace.js";

const { find } = window.slimscope;

/** @typedef {import("./live.js").LiveEvent} LiveEvent */
/** @typedef {"live" | "dense"} Side */

const USUAL = "Once upon a time";

export class TextCard {
  #dense = { prompt: "", text: "" };
  #live = "";
  /** @type {Set<Side>} */
  #fresh = new Set(); // sides that begin a new text
  #view = "text";

  /** @param {HTMLElement} card @param {{write: () => void, restore: (block: number) => void}} on */
  constructor(card, on) {
    const [dense, live] = card.querySelectorAll(".workbench-texts p");
    if (!(dense instanceof HTMLElement && live instanceof HTMLElement))
      throw new Error("There is no place for texts.");
    this.card = card;
    this.on = on;
    this.places = { dense, live };
    this.field = find(card, "input", HTMLInputElement);
    this.trace = new Trace(card, "dense", on.restore);
    this.field.placeholder = USUAL;
    find(card, "form", HTMLFormElement).onsubmit = (event) => {
      event.preventDefault();
      on.write();
    };
  }

  get own() {
    return this.field.value.trim();
  }
  /** @returns {string} */
  get prompt() {
    return this.own || USUAL;
  }
  set prompt(words) {
    this.field.value = words;
  }
  /** Traced text; "" until the dense model has continued the prompt. */
  get whole() {
    return this.#dense.prompt === this.prompt ? this.prompt + this.#dense.text : "";
  }

  /** Shows a placeholder until there is a text. @param {string} words */
  set empty(words) {
    this.places.dense.dataset.empty = words;
    this.places.live.dataset.empty = this.#dense.text ? words : "";
  }

  get view() {
    return this.#view;
  }
  set view(name) {
    this.#view = name;
    for (const button of this.card.querySelectorAll("button[data-value]"))
      button.setAttribute("aria-pressed", String(button.getAttribute("data-value") === name));
    find(this.card, ".workbench-texts").hidden = name !== "text";
    find(this.card, ".workbench-traced").hidden = name === "text";
  }

  begin() {
    this.#fresh = new Set(["live", "dense"]); // the older text stays, grayed out, until there is a newer one
    this.places.live.classList.add("quiet");
  }

  /** @param {LiveEvent} event */
  take(event) {
    if (event.event === "text") this.#add(event);
    else if (event.event === "missing" && event.of === "text")
      this.places.live.textContent = event.why;
    else this.trace.take(event);
  }

  /** @param {Extract<LiveEvent, {event: "text"}>} piece */
  #add({ side, delta, done }) {
    if (done) {
      this.#fresh.add(side);
      if (side === "dense" && this.#view === "why") this.on.write(); // there is a text to trace
      return;
    }
    this.places[side].classList.remove("quiet");
    const before = side === "live" ? this.#live : this.#dense.text;
    const text = this.#fresh.delete(side) ? delta : before + delta;
    if (side === "live") this.#live = text;
    else {
      this.#dense = { prompt: this.prompt, text };
      this.places.dense.textContent = text.trimStart();
    }
    this.#compare();
  }

  /** Marks the live text from its first word that differs. */
  #compare() {
    const words = this.#live.trimStart().match(/\S+\s*/g) ?? [];
    const others = this.#dense.text.match(/\S+/g) ?? [];
    const differs = words.findIndex((word, i) => word.trim() !== others[i]);
    const same = differs < 0 ? words.length : differs;
    const mark = window.slimscope.create("mark", { textContent: words.slice(same).join("") });
    this.places.live.replaceChildren(words.slice(0, same).join(""), ...(differs < 0 ? [] : [mark]));
  }

  /** Shows the dense text in place of the live text, or the live text again. @param {boolean} is */
  hold(is) {
    if (is) this.places.live.textContent = this.#dense.text.trimStart();
    else this.#compare();
  }
}
