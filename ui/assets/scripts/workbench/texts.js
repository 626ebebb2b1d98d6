/* What the live model writes, beside the dense one; and which blocks break which words of it. */
import { grid } from "../weights/plots.js";
import { number } from "../weights/canvas.js";

const USUAL = "The capital of France is", MOST_SAID = 3;

export class TextCard {
  #dense = { prompt: "", text: "" }; #live = ""; #fresh = new Set(); #view = "text"; #tokens = []; #losses = []; #plot = null;

  /** @param {{write: () => void, restore: (block: number) => void}} on */
  constructor(card, on) {
    const [dense, live] = card.querySelectorAll(".workbench-texts p");
    Object.assign(this, { card, on, places: { dense, live }, field: card.querySelector("input"), canvas: card.querySelector("canvas") });
    this.field.placeholder = USUAL;
    card.querySelector("form").onsubmit = (event) => { event.preventDefault(); on.write(); };
    this.canvas.onpointermove = (event) => { card.querySelector("output").textContent = this.#plot?.at(event)?.words ?? ""; };
    this.canvas.onpointerleave = () => { card.querySelector("output").textContent = ""; };
    this.canvas.onclick = (event) => { const place = this.#plot?.at(event); if (place) on.restore(place.i); };
  }

  get own() { return this.field.value.trim(); }
  get prompt() { return this.own || USUAL; }
  set prompt(words) { this.field.value = words; }
  /** The text whose tokens are traced; "" where the dense model has not gone on with the prompt yet. */
  get whole() { return this.#dense.prompt === this.prompt ? this.prompt + this.#dense.text : ""; }

  /** What stands where nothing is written yet. */
  set empty(words) { this.places.dense.dataset.empty = words; }

  get view() { return this.#view; }
  set view(name) {
    this.#view = name;
    for (const button of this.card.querySelectorAll("[data-value]")) button.setAttribute("aria-pressed", String(button.dataset.value === name));
    this.card.querySelector(".workbench-texts").hidden = name !== "text";
    this.card.querySelector(".workbench-traced").hidden = name === "text";
  }

  begin() {
    this.#fresh = new Set(["live", "dense"]); // what was written stays until there is something newer
    this.#losses = [];
  }

  take(event) {
    if (event.event === "text") this.#add(event);
    else if (event.event === "tokens") this.#tokens = event.tokens;
    else if (event.event === "why") { this.#losses[event.block] = event.losses; this.#trace(); }
    else if (event.of === "text") this.places.live.textContent = event.why;
  }

  #add({ side, delta, done }) {
    if (done) {
      this.#fresh.add(side);
      if (side === "dense" && this.#view === "why") this.on.write(); // now there is a text to trace
      return;
    }
    const before = this.#fresh.delete(side) ? "" : side === "live" ? this.#live : this.#dense.text;
    if (side === "live") this.#live = before + delta;
    else this.places.dense.textContent = (this.#dense = { prompt: this.prompt, text: before + delta }).text.trimStart();
    this.#compare();
  }

  #compare() {
    const pieces = differing(this.#live.trimStart(), this.#dense.text).map(({ word, differs }) => Object.assign(document.createElement(differs ? "mark" : "span"), { textContent: word }));
    this.places.live.replaceChildren(...pieces);
  }

  /** Shows the dense text in place of the live one, or that again. */
  hold(is) { if (is) this.places.live.textContent = this.#dense.text.trimStart(); else this.#compare(); }

  #trace() {
    const blocks = this.#losses.length, columns = this.#tokens.length - 1, canvas = this.canvas, box = canvas.parentElement;
    const data = this.#losses.flatMap((row) => (row ?? Array(columns).fill(NaN)).map((each) => each ?? NaN));
    const words = (i, j) => `block ${i} restored, “${this.#tokens[j + 1]?.trim()}”`;
    this.#plot = grid(canvas, { panels: [{ label: "Blue: better with this block dense", rows: blocks, columns, data, words }], even: true, unit: " nats", names: ["Block", "Token"], height: Math.max(120, box.clientHeight) });
    const cells = data.map((loss, at) => ({ loss, block: Math.floor(at / columns), token: this.#tokens[(at % columns) + 1] })).filter(({ loss }) => loss < 0);
    const worst = cells.sort((a, b) => a.loss - b.loss).slice(0, MOST_SAID);
    this.card.querySelector(".workbench-said").textContent = worst.length
      ? worst.map(({ loss, block, token }) => `Block ${block} breaks “${token.trim()}”: dense there, its loss falls by ${number(-loss, 2)} nats.`).join(" ")
      : "No block alone makes a word of this text worse.";
  }
}

/** The words of a text, and which of them another text does not have in this order (longest common subsequence). */
export function differing(text, other) {
  const split = (all) => all.match(/\s*\S+/g) ?? [], words = split(text), others = split(other).map((word) => word.trim());
  const own = words.map((word) => word.trim()), rows = own.length, columns = others.length;
  const long = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      long[i][j] = own[i] === others[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
  const same = new Set();
  for (let i = 0, j = 0; i < rows && j < columns;) {
    if (own[i] === others[j]) { same.add(i); i++; j++; } else if (long[i + 1][j] >= long[i][j + 1]) i++; else j++;
  }
  return words.map((word, i) => ({ word, differs: !same.has(i) }));
}
