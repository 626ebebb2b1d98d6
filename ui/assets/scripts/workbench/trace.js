/* Tokens x blocks: which blocks break which words of a text; on the Workbench, and on Compare between two models. */
import { number } from "../weights/canvas.js";
import { grid } from "../weights/plots.js";
import { LiveStream } from "./live.js";

const MOST_SAID = 3;

export class Trace {
  #tokens = [];
  #losses = [];
  #plot = null; // losses: of each block that is known

  /** @param {{of?: string, pick?: (block: number) => void}} on `of`: whose blocks restore; `pick`: a block was clicked */
  constructor(card, { of = "dense", pick = () => {} } = {}) {
    Object.assign(this, { card, of, canvas: card.querySelector("canvas") });
    const said = card.querySelector("output"),
      at = (event) => this.#plot?.at(event);
    Object.assign(this.canvas, {
      onpointermove: (event) => {
        said.textContent = at(event)?.words ?? "";
      },
      onpointerleave: () => {
        said.textContent = "";
      },
      onclick: (event) => {
        const place = at(event);
        if (place) pick(place.i);
      },
    });
  }

  take(event) {
    if (event.event === "tokens") {
      this.#tokens = event.tokens;
      this.#losses = Array(event.blocks).fill(null);
    } else if (event.event === "why") {
      this.#losses[event.block] = event.losses;
      this.#draw();
    }
  }

  #draw() {
    const rows = this.#losses.length,
      columns = this.#tokens.length - 1,
      { canvas, of } = this;
    const data = this.#losses.flatMap((row) =>
      Array.from({ length: columns }, (_, j) => row?.[j] ?? NaN),
    );
    const words = (i, j) => `block ${i} of the ${of} model, “${this.#tokens[j + 1]?.trim()}”`;
    this.#plot = grid(canvas, {
      panels: [
        {
          label: `Blue: better with this block of the ${of} model`,
          rows,
          columns,
          data,
          words,
          marks: this.#tokens.slice(1).map((each) => each.trim()),
        },
      ],
      even: true,
      unit: " nats",
      names: ["Block", "Token"],
      height: Math.max(120, canvas.parentElement.clientHeight),
    });
    const cells = data
      .map((loss, at) => ({
        loss,
        block: Math.floor(at / columns),
        token: this.#tokens[(at % columns) + 1],
      }))
      .filter(({ loss }) => loss < 0);
    const worst = cells.sort((a, b) => a.loss - b.loss).slice(0, MOST_SAID);
    this.card.querySelector(".workbench-said").textContent = worst.length
      ? worst
          .map(
            ({ loss, block, token }) =>
              `Block ${block} spoils “${token.trim()}”: with that of the ${of} model instead, its loss is ${number(-loss, 2)}\u00a0nats lower.`,
          )
          .join(" ")
      : this.#losses.includes(null)
        ? ""
        : "No block alone makes a word of this text worse.";
  }
}

let asked = null; // the stream of the form that was sent last

/** Traces the text of a form, for a run whose blocks are restored to those of another model. */
export function traced(form) {
  const { text, against, model } = Object.fromEntries(new FormData(form)),
    card = form.parentElement,
    status = card.querySelector("[role=status]");
  card.querySelector(".workbench-traced").hidden = false;
  const trace = new Trace(card, { of: form.elements.model.selectedOptions[0].text });
  asked?.end();
  asked = new LiveStream((event) => {
    trace.take(event);
    status.textContent = [event.what, event.why, event.do]
      .filter((each) => typeof each === "string")
      .join(" ");
  });
  asked.ask({ model, state: "", against, want: ["why"], text }, true);
}
