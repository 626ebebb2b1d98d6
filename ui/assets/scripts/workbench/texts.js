/* Texts of the dense and the live model, and the blocks that change their words. */
import { need } from "./elements.js";
import { Trace } from "./trace.js";

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
    this.field = need(card, "input", HTMLInputElement);
    this.trace = new Trace(card, "dense", on.restore);
    this.field.placeholder = USUAL;
    need(card, "form", HTMLFormElement).onsubmit = (event) => {
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
    need(this.card, ".workbench-texts", HTMLElement).hidden = name !== "text";
    need(this.card, ".workbench-traced", HTMLElement).hidden = name === "text";
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

  #compare() {
    const pieces = differing(this.#live.trimStart(), this.#dense.text).map(({ word, differs }) =>
      Object.assign(document.createElement(differs ? "mark" : "span"), { textContent: word }),
    );
    this.places.live.replaceChildren(...pieces);
  }

  /** Shows the dense text in place of the live text, or the live text again. @param {boolean} is */
  hold(is) {
    if (is) this.places.live.textContent = this.#dense.text.trimStart();
    else this.#compare();
  }
}

/** Words of a text, and those that are missing in another text (longest common subsequence).
    @param {string} text @param {string} other */
export function differing(text, other) {
  const words = text.match(/\s*\S+/g) ?? [];
  const own = words.map((word) => word.trim());
  const others = other.match(/\S+/g) ?? [];
  const rows = own.length;
  const columns = others.length;
  const long = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      long[i][j] =
        own[i] === others[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
  const same = new Set();
  for (let i = 0, j = 0; i < rows && j < columns;) {
    if (own[i] === others[j]) {
      same.add(i);
      i++;
      j++;
    } else if (long[i + 1][j] >= long[i][j + 1]) i++;
    else j++;
  }
  return words.map((word, i) => ({ word, differs: !same.has(i) }));
}
