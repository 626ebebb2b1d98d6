/* The live model: one stream of what is measured on a state. A newer state ends the stream of the older. */

const PAUSE_MS = 80; // a knob that still moves asks for nothing
export class LiveStream {
  #stop = null;
  #timer = 0;
  browser = crypto.randomUUID?.() ?? String(Math.random()).slice(2);

  /** @param {(event: {event: string}) => void} take */
  constructor(take) {
    this.take = take;
  }

  /** Asks for a state after a short pause, or at once. */
  ask(body, at_once = false) {
    this.end();
    this.#timer = setTimeout(() => this.#begin(body), at_once ? 0 : PAUSE_MS);
  }

  end() {
    clearTimeout(this.#timer);
    this.#stop?.abort();
    this.#stop = null;
  }

  async #begin(body) {
    const stop = (this.#stop = new AbortController()),
      mine = (event) => {
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
      const {
        what = `The server answered ${response.status}.`,
        why = "",
        do: help = "",
      } = await response.json().catch(() => ({}));
      if (!seconds) {
        mine({ event: "error", what, why, do: help });
        return;
      }
      mine({ event: "waits", what: `${what} ${why}`, about_s: seconds });
      this.#timer = setTimeout(() => {
        if (stop === this.#stop) this.#begin(body);
      }, 1000 * seconds);
    } catch (error) {
      if (!stop.signal.aborted)
        mine({
          event: "error",
          what: "The live model does not answer.",
          why: error.message,
          do: "Turn a knob to ask again.",
        });
    }
  }

  /** The live weights of a layer as the process holds them: counts in bins, and all, exact zeros, those below and above. */
  async tensor(model, state, name) {
    const answer = await fetch(
      `slimscope/workbench/tensor?${new URLSearchParams({ model, state, name, browser: this.browser })}`,
    );
    if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
    const { counts, n, zeros, below, above } = await answer.json();
    return { name, state, counts, tails: [n, zeros, below, above] };
  }
}
