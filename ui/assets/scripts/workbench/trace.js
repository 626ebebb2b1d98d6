/* Tokens x blocks: blocks that change the words of a text, on *Workbench*, and on *Compare* for two models. */
import { number } from "../weights/canvas.js";
import { grid, readOut } from "../weights/plots.js";
import { LiveStream } from "./live.js";

const { find } = window.slimscope;

/** @typedef {import("./live.js").LiveEvent} LiveEvent */
/** @typedef {{block: number, token: string, loss: number}} Cell */

const MOST_SAID = 3;

export class Trace {
  /** @type {string[]} */
  #tokens = [];
  /** @type {((number | null)[] | null)[]} */
  #losses = []; // of each block that is known
  /** @type {ReturnType<typeof grid> | null} */
  #plot = null;

  /** @param {HTMLElement} card @param {string} of the model whose blocks restore
      @param {(block: number) => void} pick a block was clicked */
  constructor(card, of = "dense", pick = () => {}) {
    this.card = card;
    this.of = of;
    this.canvas = find(card, "canvas", HTMLCanvasElement);
    readOut(this.canvas, find(card, "output"), () => this.#plot);
    this.canvas.onclick = (event) => {
      const place = this.#plot?.at(event);
      if (place) pick(place.i);
    };
  }

  /** @param {LiveEvent} event */
  take(event) {
    if (event.event === "tokens") {
      this.#tokens = event.tokens.map((token) => token.trim()).slice(1);
      this.#losses = Array(event.blocks).fill(null);
    } else if (event.event === "why") {
      this.#losses[event.block] = event.losses;
      this.#draw();
      find(this.card, ".workbench-said").textContent = this.#words();
    }
  }

  /** Changes of the loss by block and token; NaN if not measured yet. */
  get #cells() {
    return this.#losses.flatMap((row, block) =>
      this.#tokens.map((token, j) => ({ block, token, loss: row?.[j] ?? NaN })),
    );
  }

  #draw() {
    const { canvas, of } = this;
    const words = (/** @type {number} */ i, /** @type {number} */ j) =>
      `block ${i} of the ${of} model, “${this.#tokens[j]}”`;
    const panel = {
      label: `Blue: better with this block of the ${of} model`,
      rows: this.#losses.length,
      columns: this.#tokens.length,
      data: this.#cells.map(({ loss }) => loss),
      words,
      marks: this.#tokens,
    };
    this.#plot = grid(canvas, {
      panels: [panel],
      even: true,
      unit: " nats",
      names: ["Block", "Token"],
      height: Math.max(120, canvas.parentElement?.clientHeight ?? 0),
    });
  }

  #words() {
    const worst = this.#cells.filter(({ loss }) => loss < 0).sort((a, b) => a.loss - b.loss);
    if (!worst.length)
      return this.#losses.includes(null) ? "" : "No block alone makes a word of this text worse.";
    const said = (/** @type {Cell} */ { block, token, loss }) =>
      `Block ${block} spoils “${token}”: with that of the ${this.of} model instead, its loss is ${number(-loss, 2)}\u00a0nats lower.`;
    return worst.slice(0, MOST_SAID).map(said).join(" ");
  }
}

/** @type {LiveStream | null} */
let asked = null; // stream of the last submitted form

/** Traces the text of a form: blocks of a run are replaced by those of another model. @param {HTMLFormElement} form */
export function traced(form) {
  const field = (/** @type {string} */ name) => String(new FormData(form).get(name) ?? "");
  const card = form.parentElement;
  if (!card) return;
  const status = find(card, "[role=status]");
  find(card, ".workbench-traced").hidden = false;
  const model = find(form, "[name=model]", HTMLSelectElement);
  const trace = new Trace(card, model.selectedOptions[0].text);
  asked?.end();
  asked = new LiveStream((event) => {
    trace.take(event);
    const words = { what: "", why: "", do: "", ...event };
    status.textContent = [words.what, words.why, words.do].filter(Boolean).join(" ");
  });
  asked.ask(
    {
      model: field("model"),
      state: "",
      against: field("against"),
      want: ["why"],
      text: field("text"),
    },
    true,
  );
}
