/* The live model: one stream of events about a state. A newer state ends the stream of the older. */
import { reason } from "./elements.js";

/** @typedef {{event: "waits", what: string, about_s: number}
    | {event: "opened", identity: string, decoder: string}
    | {event: "applied", changed: number, ms: number, exactly: boolean, read_bytes: number | null}
    | {event: "loss", ratio: number | null, low: number | null, high: number | null, kl: number | null, dense: number, tokens: number, of: number, context: number}
    | {event: "speed", tokens_per_s: number | null, dense_tokens_per_s: number | null}
    | {event: "refined", what: string}
    | {event: "missing", of: string, why: string}
    | {event: "error", what: string, why: string, do: string}
    | {event: "text", side: "live" | "dense", delta: string, done: boolean}
    | {event: "tokens", tokens: string[], blocks: number}
    | {event: "why", block: number, losses: (number | null)[]}
    | {event: "done"} | {event: "cancelled"} | {event: "ended"}} LiveEvent
    As `jobs/serving/live/answering.py` sends them. `ratio`: perplexity over dense, `low` to `high` its interval. */
/** @typedef {{model: string, state: string, want: string[], prompt?: string, text?: string, tokens?: number, against?: string}} LiveBody */

const PAUSE_MS = 80; // no request while a slider moves

export class LiveStream {
  /** @type {AbortController | null} */
  #stop = null;
  #timer = 0;
  browser = crypto.randomUUID?.() ?? String(Math.random()).slice(2);

  /** @param {(event: LiveEvent) => void} take */
  constructor(take) {
    this.take = take;
  }

  /** Requests a state after a short pause, or immediately. @param {LiveBody} body */
  ask(body, atOnce = false) {
    this.end();
    this.#timer = setTimeout(() => this.#begin(body), atOnce ? 0 : PAUSE_MS);
  }

  end() {
    clearTimeout(this.#timer);
    this.#stop?.abort();
    this.#stop = null;
  }

  /** @param {LiveBody} body */
  async #begin(body) {
    const stop = new AbortController();
    this.#stop = stop;
    const mine = (/** @type {LiveEvent} */ event) => {
      if (stop === this.#stop) this.take(event);
    };
    try {
      const response = await fetch("slimscope/workbench/live", {
        method: "POST",
        signal: stop.signal,
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...body, browser: this.browser }),
      });
      if (response.ok) {
        await window.slimscope.events(response, mine);
        mine({ event: "ended" });
        return;
      }
      const seconds = Number(response.headers.get("retry-after"));
      const status = `The server answered ${response.status}.`;
      const error = { what: status, why: "", do: "", ...(await response.json().catch(() => ({}))) };
      if (!seconds) {
        mine({ ...error, event: "error" });
        return;
      }
      mine({ event: "waits", what: `${error.what} ${error.why}`, about_s: seconds });
      this.#timer = setTimeout(() => {
        if (stop === this.#stop) this.#begin(body);
      }, 1000 * seconds);
    } catch (error) {
      if (stop.signal.aborted) return;
      const [what, help] = ["The live model does not answer.", "Turn a knob to ask again."];
      mine({ event: "error", what, why: reason(error), do: help });
    }
  }

  /** Layer of the serving process; null if unavailable, or different from that of a run.
      @param {string} model @param {string} state @param {string} name
      @returns {Promise<import("./view.js").LiveTensor | null>} */
  async tensor(model, state, name) {
    const query = new URLSearchParams({ model, state, name, browser: this.browser });
    const answer = await fetch(`slimscope/workbench/tensor?${query}`).catch(() => null);
    if (!answer?.ok) return null;
    const { made, counts, tails } = await answer.json();
    return made === "instant" ? null : { name, state, counts, tails };
  }
}
