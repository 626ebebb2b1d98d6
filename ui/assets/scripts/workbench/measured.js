/* Figures of each state, predicted, counted or measured; the gauges show them. */
import { number, share, times } from "../weights/canvas.js";
import { need } from "./elements.js";

/** @typedef {import("./live.js").LiveEvent} LiveEvent */
/** @typedef {Extract<LiveEvent, {event: "loss"}>} LossEvent */
/** @typedef {{ratio?: number, low?: number | null, high?: number | null, kl?: number | null, tokens?: number, read?: number | null,
      speed?: number | null, exactly?: boolean}} Known
    Measured on a state: perplexity over dense with its interval, nats, tokens of text, bytes and tokens a second.
    `exactly`: the layers are as a run makes them. */
/** @typedef {{value: string, details: string[], how: string, more?: string[]}} Reading `more`: in the title alone. */
/** @typedef {import("./view.js").View} View */
/** @typedef {import("./predictions.js").Totals} Totals */

/** The same of any version of the model. @param {string} address */
const key = (address) => address.replace(/^[^~]*/, "");
/** @param {number} nbytes */
export const megabytes = (nbytes) => `${number(nbytes / 1e6)}\u00a0MB`;
/** @param {number} many */
const counted = (many) => many.toLocaleString("en");
/** @param {string[]} words */
const joined = (words) => words.filter(Boolean).join(" · ");

export class Measured {
  /** @type {Map<string, Known>} */
  #known = new Map();
  #now = "";
  /** @type {number | null} */
  #perplexity = null;
  /** @type {number | null} */
  #dense = null; // tokens a second

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.status = need(element, ".workbench-status", HTMLElement);
  }

  /** Forgets all figures, which are those of another model. */
  forget() {
    this.#known.clear();
    this.#perplexity = null;
    this.#dense = null;
  }

  /** @param {string} address */
  begin(address) {
    this.#now = key(address);
    this.say("Asking the live model. If its process has to start first, about 10 s …");
  }

  /** @param {string} address @returns {Known} */
  of(address) {
    return this.#known.get(key(address)) ?? {};
  }

  /** @param {string} words */
  say(words, warns = false) {
    this.status.textContent = this.status.title = words;
    this.status.classList.toggle("warn", warns);
  }

  /** @param {LiveEvent} event */
  take(event) {
    switch (event.event) {
      case "waits":
        this.say(`${event.what}${this.#wait(event.about_s)} …`);
        break;
      case "opened":
        this.say(`Live, ${event.decoder}`);
        break;
      case "applied":
        this.#applied(event);
        break;
      case "loss":
        this.#loss(event);
        break;
      case "speed":
        this.#dense = event.dense_tokens_per_s;
        this.#learn({ speed: event.tokens_per_s });
        break;
      case "refined":
        this.say(event.what);
        break;
      case "missing":
        this.say(event.why, true);
        break;
      case "error":
        this.say([event.what, event.why, event.do].filter(Boolean).join(" "), true);
    }
  }

  /** @param {number} seconds */
  #wait(seconds) {
    return seconds ? `, about ${Math.max(1, Math.round(seconds))} s` : "";
  }

  /** @param {Known} figures of the state that was asked about */
  #learn(figures) {
    this.#known.set(this.#now, { ...this.#known.get(this.#now), ...figures });
  }

  /** @param {Extract<LiveEvent, {event: "applied"}>} event */
  #applied({ changed, ms, exactly, read_bytes: read }) {
    const nothing = { ratio: undefined, low: undefined, high: undefined, tokens: undefined };
    if (exactly && this.#known.get(this.#now)?.exactly === false) this.#learn(nothing); // but the instant answer
    this.#learn({ read, exactly });
    this.say(changed ? `${changed} layers changed in ${Math.round(ms)} ms` : "Live");
  }

  /** @param {LossEvent} event */
  #loss({ ratio, low, high, kl, dense, tokens, of }) {
    this.#learn({ ratio: ratio ?? NaN, low, high, kl, tokens });
    this.#perplexity = Math.exp(dense);
    const far = tokens < of ? " so far" : "";
    this.say(
      `Perplexity ${times(ratio ?? NaN)} dense, measured on ${counted(tokens)} tokens${far}`,
    );
  }

  /** @param {View} view @param {Totals} totals of what is shown @param {Known} known */
  gauges(view, totals, known) {
    const whole = view.predictions.totals(view.dense);
    this.#show("ratio", this.#ratio(view, totals, known));
    this.#show("kl", this.#divergence(view, totals, known));
    const part = share(totals.nbytes / whole.nbytes, 0);
    this.#show("size", {
      value: megabytes(totals.nbytes),
      details: [
        `${part} of ${megabytes(whole.nbytes)} on disk`,
        totals.zeros > 5e-4 ? `${share(totals.zeros)} zeros` : "",
      ],
      how: "counted",
    });
    const read = known.read ?? totals.read;
    const inMemory = known.read ? " in memory" : "";
    this.#show("read", {
      value: megabytes(read),
      details: [`${share(read / whole.read, 0)} of ${megabytes(whole.read)}${inMemory}`],
      how: known.read ? "measured" : "counted",
    });
    this.#show("speed", this.#speed(view, whole.read / totals.read, known));
  }

  /** The reason why there is no prediction, or a warning about it.
      @param {View} view @param {Totals} totals */
  #doubts(view, { unknown, untried }) {
    let missing = "";
    if (!view.predictions.run) missing = "A profile predicts it";
    else if (unknown) missing = `${unknown} layers have no prediction`;
    const layers = untried === 1 ? "layer" : "layers";
    const outside = `⚠\u00a0${untried} ${layers} outside what was measured`;
    return { missing, outside: untried && !missing ? outside : "" };
  }

  /** @param {View} view @param {Totals} totals @param {Known} known @returns {Reading} */
  #ratio(view, totals, known) {
    const predicted = view.predicted(totals);
    const perplexity = this.#perplexity ?? view.model.perplexity;
    const text = this.#perplexity ? "the evaluation text" : "the profile's text";
    const ratio = known.ratio ?? predicted;
    let against = "";
    if (perplexity && Number.isFinite(ratio))
      against = `${number(ratio * perplexity)}, dense ${number(perplexity)} on ${text}`;
    if (known.ratio === undefined) {
      const { made } = view.model;
      const { missing, outside } = this.#doubts(view, totals);
      const other = view.isMadeOtherwise(totals) && !missing;
      const methods = other ? `if made by ${made.pruner}, ${made.quantizer}` : "";
      return {
        value: times(ratio),
        details: [outside, against || missing, methods],
        how: "predicted",
      };
    }
    const { low, high, tokens } = known;
    const interval = low && high ? `${number(low)} to ${number(high)}` : "";
    const missed = low && high && (predicted < low || predicted > high) ? ", outside" : "";
    const before = Number.isFinite(predicted) ? `predicted ${times(predicted)}${missed}` : "";
    return {
      value: times(ratio),
      details: [interval, before, against],
      how: this.#how(known),
      more: [`on its first ${counted(tokens ?? 0)} tokens`],
    };
  }

  /** @param {Known} known */
  #how({ exactly }) {
    return exactly ? "measured" : "measured, quick version";
  }

  /** @param {View} view @param {Totals} totals @param {Known} known @returns {Reading} */
  #divergence(view, totals, known) {
    const nats = (/** @type {number} */ kl) =>
      Number.isFinite(kl) ? `${number(kl, 2)}\u00a0nats` : "–";
    if (known.ratio !== undefined) {
      const details = [`${counted(known.tokens ?? 0)} tokens`];
      return { value: nats(known.kl ?? NaN), details, how: this.#how(known) };
    }
    const { missing, outside } = this.#doubts(view, totals);
    return {
      value: nats(missing ? NaN : totals.loss),
      details: [missing || outside || "Sum over the layers"],
      how: "predicted",
    };
  }

  /** @param {View} view @param {number} faster by the bytes that are read @param {Known} known @returns {Reading} */
  #speed(view, faster, known) {
    const dense = this.#dense;
    const speed = known.speed ?? (dense ? dense * faster : NaN);
    const value = Number.isFinite(speed) ? `${number(speed)}\u00a0tokens/s` : "–";
    if (!dense) {
      const details = [view.model.live.why ? "Needs the live model" : "Measured with a text"];
      return { value, details, how: known.speed ? "measured" : "" };
    }
    const details = [`${times(speed / dense)} dense`];
    return { value, details, how: known.speed ? "measured" : "predicted" };
  }

  /** @param {string} name @param {Reading} reading */
  #show(name, { value, details, how, more = [] }) {
    const tile = need(this.element, `[data-gauge="${name}"]`, HTMLElement);
    const [first, second] = tile.querySelectorAll("dd");
    const shown = value === "–" ? "" : how;
    tile.dataset.known = shown.split(/\W/)[0];
    need(tile, "i", HTMLElement).textContent = shown;
    first.textContent = value;
    second.textContent = joined(details);
    second.title = joined([...details, ...more]);
  }
}
