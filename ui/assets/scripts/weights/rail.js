/* The rail of stages in the toolbar: a stop with a small histogram for each main stage, a tick for each variant, and
   for each recorded step of training. A drag scrubs between the stops. */
import { inks, number, stageInk, surface } from "./canvas.js";
/** @import {Histograms} from "./histograms.js" */

/** @typedef {{s: number, step: number | null, button: HTMLButtonElement, canvas: HTMLCanvasElement | null}} Stop */
/**
 * @typedef {object} RailEvents
 * @property {(s: number, step: number | null) => void} stop
 * @property {(place: number, ends: boolean) => void} scrub `place`: between the main stages, from 0
 */

const { create } = window.slimscope;
const BINS = 64;
const HEIGHT = 20;
const MIN_DRAG_PX = 4;
/** @type {Record<string, number>} */
const MOVES = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };

export class Rail {
  /** @type {Stop[]} */
  #stops = [];
  #key = "";

  /** @param {HTMLElement} box @param {RailEvents} on */
  constructor(box, on) {
    this.box = box;
    this.on = on;
    let from = -1;
    let isDragged = false;
    box.onpointerdown = (event) => {
      from = event.button ? -1 : event.clientX;
      isDragged = false;
    };
    box.onpointermove = (event) => {
      if (from < 0 || !event.buttons) return;
      if (!isDragged && Math.abs(event.clientX - from) > MIN_DRAG_PX) {
        isDragged = true;
        box.setPointerCapture(event.pointerId);
      }
      if (isDragged) on.scrub(this.#placeAt(event.clientX), false);
    };
    box.onpointerup = (event) => {
      if (isDragged) on.scrub(this.#placeAt(event.clientX), true);
      from = -1;
    };
    box.onkeydown = (event) => {
      const at = this.#stops.findIndex(({ button }) => button === document.activeElement);
      const ends = { Home: 0, End: this.#stops.length - 1 };
      const next = ends[/** @type {"Home" | "End"} */ (event.key)] ?? at + MOVES[event.key];
      const stop = this.#stops[next];
      if (!stop || at < 0) return;
      event.preventDefault();
      stop.button.focus();
      on.stop(stop.s, stop.step);
    };
  }

  /** Position of a pixel between the centers of the main stops. @param {number} x */
  #placeAt(x) {
    const middles = this.#stops
      .filter(({ canvas }) => canvas)
      .map(({ button }) => {
        const { left, width } = button.getBoundingClientRect();
        return left + width / 2;
      });
    const after = middles.findIndex((middle) => x < middle);
    if (after === 0) return 0;
    if (after < 0) return middles.length - 1;
    return after - 1 + (x - middles[after - 1]) / (middles[after] - middles[after - 1]);
  }

  /** Makes the stops of a run; `steps` of training follow their stage. @param {Histograms} data
      @param {{s: number, steps: number[]} | null} training */
  fill(data, training) {
    const key = JSON.stringify([data.run, data.stages.map(({ name }) => name), training]);
    if (key === this.#key) return;
    this.#key = key;
    this.#stops = data.stages.flatMap((stage, s) => {
      const isMain = data.main.includes(s);
      const own = this.#stop(data, s, null, stage.short, isMain);
      if (training?.s !== s) return [own];
      return [own, ...training.steps.map((step) => this.#stop(data, s, step, String(step), false))];
    });
    this.box.replaceChildren(...this.#stops.map(({ button }) => button));
  }

  /** @type {(data: Histograms, s: number, step: number | null, text: string, isMain: boolean) => Stop} */
  #stop(data, s, step, text, isMain) {
    const { label, perplexity, color } = data.stages[s];
    const name = step === null ? label : `${label}, step ${step}`;
    const button = create("button", {
      type: "button",
      title: perplexity && step === null ? `${name}: perplexity ${number(perplexity, 4)}` : name,
      className: isMain ? "" : "variant",
    });
    button.setAttribute("role", "radio");
    button.ariaLabel = name;
    button.style.setProperty("--stage", stageInk(color));
    const canvas = isMain ? create("canvas") : null;
    if (canvas) button.append(canvas);
    button.append(create("span", { textContent: text }));
    button.onclick = () => this.on.stop(s, step);
    return { s, step, button, canvas };
  }

  /** Draws a tensor at every main stage, and marks the stop that is shown. @param {Histograms} data @param {number} t
      @param {number} s @param {number | null} step */
  draw(data, t, s, step) {
    const ink = inks();
    const reach = data.reach(t, data.main);
    const [from, to] = data.range(t);
    const most = Math.max(...data.heights(t, data.main[0], BINS), 0.01) * 1.2;
    for (const stop of this.#stops) {
      const isShown = stop.s === s && stop.step === step;
      stop.button.ariaChecked = String(isShown);
      stop.button.tabIndex = isShown ? 0 : -1;
      if (!stop.canvas) continue;
      const { pen, width } = surface(stop.canvas, HEIGHT);
      const x = (/** @type {number} */ bin) =>
        ((from + (bin * (to - from)) / BINS + reach) / (2 * reach)) * width;
      pen.fillStyle = ink.stage(data.stages[stop.s].color);
      data.heights(t, stop.s, BINS).forEach((height, bin) => {
        const top = HEIGHT * (1 - Math.min(1, height / most));
        pen.fillRect(x(bin), top, Math.max(1, x(bin + 1) - x(bin)), HEIGHT);
      });
    }
  }
}
