/* What is known of each state: predicted, counted or measured; the gauges show it. */
import { number, share, times } from "../weights/canvas.js";

/** @typedef {{ratio?: number, low?: number, high?: number, kl?: number, loss?: number, tokens?: number, read?: number, speed?: number, exactly?: boolean}} Known */

const key = (address) => address.replace(/^[^~]*/, ""); // the same of any version
export const megabytes = (nbytes) => `${number(nbytes / 1e6)}\u00a0MB`;

export class Measured {
  #known = new Map();
  #now = "";
  #perplexity = null;
  #bandwidth = null; // tokens/s times bytes a token, of the dense model

  constructor(element) {
    this.status = element.querySelector(".workbench-status");
    this.tiles = Object.fromEntries(
      [...element.querySelectorAll("[data-gauge]")].map((each) => [each.dataset.gauge, each]),
    );
  }

  begin(address) {
    this.#now = key(address);
    this.say("Asking the live model. If its process has to start first, about 10 s …");
  }

  /** @returns {Known | undefined} */
  of(address) {
    return this.#known.get(key(address));
  }

  say(words, warns = false) {
    this.status.textContent = this.status.title = words;
    this.status.classList.toggle("warn", warns);
  }

  take(event) {
    const now = { ...this.#known.get(this.#now) };
    switch (event.event) {
      case "waits":
        this.say(
          `${event.what}${event.about_s ? `, about ${Math.max(1, Math.round(event.about_s))} s` : ""} …`,
        );
        return;
      case "opened":
        this.say(`Live, ${event.decoder}`);
        return;
      case "applied":
        if (event.exactly && now.exactly === false)
          Object.assign(now, {
            ratio: undefined,
            low: undefined,
            high: undefined,
            tokens: undefined,
          }); // of the instant answer
        Object.assign(now, { read: event.read_bytes, exactly: event.exactly });
        this.say(
          event.changed ? `${event.changed} layers changed in ${Math.round(event.ms)} ms` : "Live",
        );
        break;
      case "loss": {
        const { ratio, low, high, kl, loss, dense, tokens, of } = event;
        Object.assign(now, { ratio: ratio ?? Math.exp(loss - dense), low, high, kl, loss, tokens });
        this.#perplexity = Math.exp(dense);
        this.say(
          `Perplexity ${times(now.ratio)} dense, measured on ${tokens.toLocaleString("en")} tokens${tokens < of ? " so far" : ""}`,
        );
        break;
      }
      case "speed":
        Object.assign(now, { speed: event.tokens_per_s, dense: event.dense_tokens_per_s });
        this.#bandwidth = event.dense_tokens_per_s;
        break;
      case "refined":
        this.say(event.what);
        return;
      case "missing":
        this.say(event.why, true);
        return;
      case "error":
        this.say([event.what, event.why, event.do].filter(Boolean).join(" "), true);
        return;
      default:
        return;
    }
    this.#known.set(this.#now, now);
  }

  /** @param {import("./predictions.js").Totals} totals */
  gauges(totals, known = {}, page) {
    const perplexity = this.#perplexity ?? page.model.perplexity,
      whole = page.predictions.totals(page.dense),
      measured = known.ratio !== undefined;
    const how = known.exactly ? "measured" : "measured, quick version",
      predicted = !page.predictions.run || totals.unknown ? NaN : Math.exp(totals.loss),
      ratio = measured ? known.ratio : predicted;
    const { made } = page.model,
      other = page.madeOtherwise(totals);
    const unknown = !page.predictions.run
      ? "A profile predicts it"
      : totals.unknown
        ? `${totals.unknown} layers have no prediction`
        : "";
    const outside =
      totals.untried && !unknown
        ? `⚠\u00a0${totals.untried} ${totals.untried === 1 ? "layer" : "layers"} outside what was measured`
        : "";
    const text = this.#perplexity ? "the evaluation text" : "the profile's text",
      against =
        perplexity && Number.isFinite(ratio)
          ? `${number(ratio * perplexity)}, dense ${number(perplexity)} on ${text}`
          : "";
    const interval = known.low ? `${number(known.low)} to ${number(known.high)}` : "",
      tokens = known.tokens ? `${known.tokens.toLocaleString("en")} tokens` : "";
    this.#show(
      "ratio",
      times(ratio),
      measured
        ? [
            interval,
            Number.isFinite(predicted)
              ? `predicted ${times(predicted)}${interval && (predicted < known.low || predicted > known.high) ? ", outside" : ""}`
              : "",
            against,
          ]
        : [
            outside,
            against || unknown,
            other && !unknown ? `if made by ${made.pruner}, ${made.quantizer}` : "",
          ],
      measured ? how : "predicted",
      measured ? [`on its first ${tokens}`] : [],
    );
    const kl = measured ? known.kl : unknown ? NaN : totals.loss;
    this.#show(
      "kl",
      Number.isFinite(kl) ? `${number(kl, 2)}\u00a0nats` : "–",
      [measured ? tokens : unknown || outside || "Sum over the layers"],
      measured ? how : "predicted",
    );
    this.#show(
      "size",
      megabytes(totals.nbytes),
      [
        `${share(totals.nbytes / whole.nbytes, 0)} of ${megabytes(whole.nbytes)} on disk`,
        totals.zeros > 5e-4 ? `${share(totals.zeros)} zeros` : "",
      ],
      "counted",
    );
    const read = known.read ?? totals.read;
    this.#show(
      "read",
      megabytes(read),
      [
        `${share(read / whole.read, 0)} of ${megabytes(whole.read)}${known.read ? " in memory" : ""}`,
      ],
      known.read ? "measured" : "counted",
    );
    const speed =
      known.speed ?? (this.#bandwidth ? (this.#bandwidth * whole.read) / totals.read : NaN);
    this.#show(
      "speed",
      Number.isFinite(speed) ? `${number(speed)}\u00a0tokens/s` : "–",
      [
        this.#bandwidth
          ? `${times(speed / this.#bandwidth)} dense`
          : page.model.live.why
            ? "Needs the live model"
            : "Measured with a text",
      ],
      known.speed ? "measured" : this.#bandwidth ? "predicted" : "",
    );
  }

  #show(name, value, details, how, more = []) {
    // more: in the title alone
    const tile = this.tiles[name],
      [term, first, second] = tile.children;
    tile.dataset.known = value === "–" ? "" : how.match(/\w*/)[0];
    term.querySelector("i").textContent = value === "–" ? "" : how;
    first.textContent = value;
    [second.textContent, second.title] = [details, [...details, ...more]].map((words) =>
      words.filter(Boolean).join(" · "),
    );
  }
}
