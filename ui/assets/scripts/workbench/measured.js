/* Metrics of each state for the gauges: predicted, live, final or counted. */
import { number, share, times } from "../weights/canvas.js";
import { link, tell } from "./elements.js";

const { find } = window.slimscope;

/** @typedef {import("./live.js").LiveEvent} LiveEvent */
/** @typedef {Extract<LiveEvent, {event: "loss"}>} LossEvent */
/** @typedef {{ratio?: number, low?: number | null, high?: number | null, kl?: number | null, tokens?: number, context?: number, read?: number | null,
      speed?: number | null, exactly?: boolean}} Known
    Measured on a state: perplexity over dense with its interval, nats, tokens of text in windows of `context`, bytes and
    tokens a second. `exactly`: the layers are as a run makes them. */
/** @typedef {{value: string, details: string[], how: string, run?: string}} Reading `run`: whose result it is */
/** @typedef {import("./view.js").View} View */
/** @typedef {import("./predictions.js").Totals} Totals */

/** Metrics of any version of the model. @param {string} address */
const key = (address) => address.replace(/^[^~]*/, "");
/** @param {number} nbytes */
export const megabytes = (nbytes) => `${number(nbytes / 1e6)}\u00a0MB`;
/** @param {number} many */
const counted = (many) => many.toLocaleString("en");
/** @param {number} count @param {number} context */
const windows = (count, context) => (count ? `${counted(count)} × ${context} tokens` : "");
/** @param {string[]} words */
const joined = (words) => words.filter(Boolean).join(" · ");

export class Measured {
  /** @type {Map<string, Known>} */
  #known = new Map();
  #now = "";
  /** @type {number | null} */
  #dense = null; // tokens a second

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.status = find(element, ".workbench-status");
  }

  /** Clears all metrics when the model changes. */
  forget() {
    this.#known.clear();
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
    if (exactly && this.#known.get(this.#now)?.exactly === false) this.#learn(nothing); // except for the preview
    this.#learn({ read, exactly });
    this.say(changed ? `${changed} layers changed in ${Math.round(ms)} ms` : "Live");
  }

  /** @param {LossEvent} event */
  #loss({ ratio, low, high, kl, dense, tokens, of, context }) {
    this.#learn({ ratio: ratio ?? NaN, low, high, kl, tokens, context });
    const far = tokens < of ? " so far" : "";
    this.say(`Perplexity ${times(ratio ?? NaN)} dense, live on ${counted(tokens)} tokens${far}`);
  }

  /** @param {View} view @param {Totals} totals of what is shown @param {Known} known */
  gauges(view, totals, known) {
    const whole = view.predictions.totals(view.dense);
    this.#ratio("predicted", this.#predicted(view, totals));
    this.#ratio("live", this.#live(view, known));
    this.#ratio("final", this.#final(view));
    this.#show("kl", this.#divergence(view, totals, known));
    const part = share(totals.nbytes / whole.nbytes, 0);
    this.#show("size", {
      value: megabytes(totals.nbytes),
      details: [
        `${part} of ${megabytes(whole.nbytes)}`,
        totals.zeros > 5e-4 ? `${share(totals.zeros)} zeros` : "",
      ],
      how: "counted",
    });
    const read = known.read ?? totals.read;
    const inMemory = known.read ? " in memory" : "";
    this.#show("read", {
      value: megabytes(read),
      details: [`${share(read / whole.read, 0)} of ${megabytes(whole.read)}${inMemory}`],
      how: known.read ? "live" : "counted",
    });
    this.#show("speed", this.#speed(view, whole.read / totals.read, known));
  }

  /** The reason why there is no prediction, or a warning about it.
      @param {View} view @param {Totals} totals */
  #doubts(view, { unknown, untried }) {
    let missing = "";
    if (!view.predictions.run) missing = "needs a profile";
    else if (unknown) missing = `${unknown} layers have no prediction`;
    const layers = untried === 1 ? "layer" : "layers";
    const outside = `⚠\u00a0${untried} ${layers} outside the profile`;
    return { missing, outside: untried && !missing ? outside : "" };
  }

  /** @param {View} view @param {Totals} totals @returns {Reading} */
  #predicted(view, totals) {
    const { made, text: read } = view.model;
    const { missing, outside } = this.#doubts(view, totals);
    const isOther = view.isMadeOtherwise(totals) && !missing;
    const methods = isOther ? `if made by ${made.pruner}, ${made.quantizer}` : "";
    const text = windows(...read);
    const details = [missing, outside, methods, missing ? "" : text];
    return { value: times(view.predicted(totals)), details, how: "" };
  }

  /** @param {View} view @param {Known} known @returns {Reading} */
  #live(view, { ratio, low, high, tokens = 0, context = 0, exactly }) {
    const { slow } = view;
    const both = (/** @type {number} */ n) => slow.map((methods) => methods[n]).join(" and ");
    if (ratio === undefined) {
      const details = [view.model.live.why ? "needs the live model" : ""];
      return { value: "–", details, how: "" };
    }
    const interval = low && high ? `${number(low)} to ${number(high)}` : "";
    const preview =
      exactly || !slow.length ? "" : `preview by ${both(0)}, usually worse; ${both(1)} follows`;
    return {
      value: times(ratio),
      details: [preview, interval, windows(Math.round(tokens / context), context)],
      how: "",
    };
  }

  /** The result of a run that makes this state. @param {View} view @returns {Reading} */
  #final({ runs, holding, isDense }) {
    const [made, ...others] = holding || isDense ? [] : runs;
    if (!made) return { value: "–", details: [holding ? "" : "Run this state to know"], how: "" };
    const { run, final, stage, at } = made;
    const details = final ? [stage, windows(...made.text)] : [at];
    const also = others.length ? `also ${others.map((each) => each.run).join(", ")}` : "";
    return { value: times(final ?? NaN), details: [...details, also], how: "", run };
  }

  /** @param {string} how @param {Reading} reading */
  #ratio(how, { value, details, run = "" }) {
    const place = find(this.element, `[data-how="${how}"]`);
    place.dataset.known = value === "–" ? "" : how;
    place.toggleAttribute(
      "data-preview",
      details.some((words) => words.startsWith("preview")),
    );
    tell(find(place, "b"), value);
    const text = find(place, "small");
    const words = joined([run, ...details]);
    if (text.title === words) return;
    text.title = words;
    text.replaceChildren(run ? link(`run?id=${run}`, run) : "", words.slice(run.length));
  }

  /** @param {Known} known */
  #how({ exactly }) {
    return exactly ? "live" : "live, preview";
  }

  /** @param {View} view @param {Totals} totals @param {Known} known @returns {Reading} */
  #divergence(view, totals, known) {
    const nats = (/** @type {number} */ kl) =>
      Number.isFinite(kl) ? `${number(kl, 2)}\u00a0nats` : "–";
    if (known.ratio !== undefined) {
      const { tokens = 0, context = 1 } = known;
      const details = [windows(Math.round(tokens / context), context)];
      return { value: nats(known.kl ?? NaN), details, how: this.#how(known) };
    }
    const { missing, outside } = this.#doubts(view, totals);
    return {
      value: nats(missing ? NaN : totals.loss),
      details: [missing || outside || "sum over the layers"],
      how: "predicted",
    };
  }

  /** @param {View} view @param {number} faster by the bytes that are read @param {Known} known @returns {Reading} */
  #speed(view, faster, known) {
    const dense = this.#dense;
    const speed = known.speed ?? (dense ? dense * faster : NaN);
    const value = Number.isFinite(speed) ? `${number(speed)}\u00a0tokens/s` : "–";
    if (!dense) {
      const details = [view.model.live.why ? "needs the live model" : "measured with a text"];
      return { value, details, how: known.speed ? "live" : "" };
    }
    const details = [`${times(speed / dense)} dense`];
    return { value, details, how: known.speed ? "live" : "predicted" };
  }

  /** @param {string} name @param {Reading} reading */
  #show(name, { value, details, how }) {
    const tile = find(this.element, `[data-gauge="${name}"]`);
    const [first, second] = tile.querySelectorAll("dd");
    const shown = value === "–" ? "" : how;
    tile.dataset.known = shown.split(/\W/)[0];
    tell(find(tile, "i"), shown);
    tell(first, value);
    second.title = joined(details);
    tell(second, second.title);
  }
}
