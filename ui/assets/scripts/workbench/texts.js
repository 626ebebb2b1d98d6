/* What the live model writes, beside the dense one; and which blocks break which words of it. */
import { Trace } from "./trace.js";

const USUAL = "Once upon a time";

export class TextCard {
  #dense = { prompt: "", text: "" };
  #live = "";
  #fresh = new Set();
  #view = "text";

  /** @param {{write: () => void, restore: (block: number) => void}} on */
  constructor(card, on) {
    const [dense, live] = card.querySelectorAll(".workbench-texts p");
    Object.assign(this, {
      card,
      on,
      places: { dense, live },
      field: card.querySelector("input"),
      trace: new Trace(card, { pick: (block) => on.restore(block) }),
    });
    this.field.placeholder = USUAL;
    card.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      on.write();
    };
  }

  get own() {
    return this.field.value.trim();
  }
  get prompt() {
    return this.own || USUAL;
  }
  set prompt(words) {
    this.field.value = words;
  }
  /** The text whose tokens are traced; "" where the dense model has not gone on with the prompt yet. */
  get whole() {
    return this.#dense.prompt === this.prompt ? this.prompt + this.#dense.text : "";
  }

  /** What stands where the next words will be. */
  set empty(words) {
    this.places.dense.dataset.empty = words;
    this.places.live.dataset.empty = this.#dense.text ? words : "";
  }

  get view() {
    return this.#view;
  }
  set view(name) {
    this.#view = name;
    for (const button of this.card.querySelectorAll("[data-value]"))
      button.setAttribute("aria-pressed", String(button.dataset.value === name));
    this.card.querySelector(".workbench-texts").hidden = name !== "text";
    this.card.querySelector(".workbench-traced").hidden = name === "text";
  }

  begin() {
    this.#fresh = new Set(["live", "dense"]); // what was written stays, paler, until there is something newer
    this.places.live.classList.add("quiet");
  }

  take(event) {
    if (event.event === "text") this.#add(event);
    else if (event.of === "text") this.places.live.textContent = event.why;
    else this.trace.take(event);
  }

  #add({ side, delta, done }) {
    if (done) {
      this.#fresh.add(side);
      if (side === "dense" && this.#view === "why") this.on.write(); // now there is a text to trace
      return;
    }
    this.places[side].classList.remove("quiet");
    const before = this.#fresh.delete(side) ? "" : side === "live" ? this.#live : this.#dense.text;
    if (side === "live") this.#live = before + delta;
    else
      this.places.dense.textContent = (this.#dense = {
        prompt: this.prompt,
        text: before + delta,
      }).text.trimStart();
    this.#compare();
  }

  #compare() {
    const pieces = differing(this.#live.trimStart(), this.#dense.text).map(({ word, differs }) =>
      Object.assign(document.createElement(differs ? "mark" : "span"), { textContent: word }),
    );
    this.places.live.replaceChildren(...pieces);
  }

  /** Shows the dense text in place of the live one, or that again. */
  hold(is) {
    if (is) this.places.live.textContent = this.#dense.text.trimStart();
    else this.#compare();
  }
}

/** The words of a text, and which of them another text does not have in this order (longest common subsequence). */
export function differing(text, other) {
  const split = (all) => all.match(/\s*\S+/g) ?? [],
    words = split(text),
    others = split(other).map((word) => word.trim());
  const own = words.map((word) => word.trim()),
    rows = own.length,
    columns = others.length;
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
