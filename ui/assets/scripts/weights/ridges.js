/* One module in every block, one histogram behind the other, through the stages: between two of them the
   blocks follow one another, like a zip. Nothing between two stages is measured. */
import { bottomAxis, em, inks, number, still, surface, ticks, tween } from "./canvas.js";
import { rebinned } from "./histogram.js";
import { shortName, smoothed } from "./words.js";
/** @import {AxisScale} from "./canvas.js" */
/** @import {Histograms} from "./histograms.js" */
/** @import {Figures} from "./tables.js" */

/**
 * The histograms of a module, without exact zeros, on one axis and one scale.
 * @typedef {object} RidgeData
 * @property {string} key
 * @property {Histograms} data
 * @property {string} module
 * @property {number[]} tensors by block
 * @property {number[][][]} heights percent by stage, block, bin
 * @property {number} reach half of the axis
 * @property {number} tallest height of the first stage
 */
/** @typedef {RidgeData & {picked: number, s: number, place: number}} DrawnRidges `place`: between the main stages, from 0 */

const LEFT = 44;
const RIGHT = 12;
const TOP = 48;
const BOTTOM = () => em(2.25);
const BINS = 128;
const OVERLAP = 4; // rows that the tallest ridge covers
const MOST_BLOCKS = 0.8; // share of blocks that the axis shows whole
const LAG = 1.2; // of the last block behind the first
const MOVE_MS = 450;
const PLAY_MS = 1400;
const REST_MS = 500;
const FRAMES_PER_SECOND = 30;
const MIN_DRAG_PX = 3;
const MAX_LABELS = 10;

/** @type {(data: Histograms, module: string) => RidgeData} */
function read(data, module) {
  const tensors = data.blocks.map((block) => data.at(block, module)).filter((t) => t >= 0);
  const reaches = tensors.map((t) => data.reach(t, data.main)).sort((a, b) => a - b);
  const reach = reaches[Math.floor(MOST_BLOCKS * (tensors.length - 1))];
  const heights = data.stages.map((_, s) =>
    tensors.map((t) => smoothed(Array.from(rebinned(data, t, s, [-reach, reach], BINS)))),
  );
  const tallest = Math.max(...heights[data.main[0]].flat()) || 1;
  return { key: `${data.etag} ${module}`, data, module, tensors, heights, reach, tallest };
}

export class Ridges {
  /** @type {DrawnRidges | null} */
  #drawn = null;
  #stop = () => {};
  #isFilming = false;
  #isPlaying = false;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{stage: (s: number) => void}} on
   */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on;
    /** @type {number | null} */
    let from = null;
    canvas.onpointerdown = (event) => {
      if (event.button || !this.#drawn) return;
      from = event.offsetX;
      canvas.setPointerCapture(event.pointerId);
    };
    canvas.onpointermove = (event) => {
      if (from === null || Math.abs(event.offsetX - from) <= MIN_DRAG_PX) return;
      const part = (event.offsetX - LEFT) / (canvas.clientWidth - LEFT - RIGHT);
      this.scrub(Math.max(0, Math.min(1, part)) * (this.#last.data.main.length - 1));
    };
    canvas.onpointerup = (event) => {
      if (from !== null && Math.abs(event.offsetX - from) > MIN_DRAG_PX)
        on.stage(this.#last.data.main[Math.round(this.#last.place)]);
      from = null;
    };
  }

  /** What was drawn last. */
  get #last() {
    if (!this.#drawn) throw new Error("No ridges have been drawn.");
    return this.#drawn;
  }

  /**
   * @param {Histograms} data
   * @param {number} t
   * @param {number} s
   * @param {boolean} moves the blocks glide from the stage that was drawn
   */
  draw(data, t, s, moves) {
    const { module } = data.tensors[t];
    const before = this.#drawn;
    const isSame = before?.key === `${data.etag} ${module}`;
    const ridges = isSame ? before : read(data, module);
    const place = this.#isPlaying && before ? before.place : Math.max(0, data.main.indexOf(s));
    this.#drawn = { ...ridges, picked: t, s, place };
    if (this.#isPlaying) return;
    this.#stop();
    if (moves && isSame && before.s !== s)
      this.#stop = tween((part) => this.#paint(before.s, s, part), MOVE_MS);
    else this.#paint(s, s, 1);
  }

  /** Shows a place between the main stages. @param {number} place from 0 */
  scrub(place) {
    const { main } = this.#last.data;
    const i = Math.min(Math.floor(place), main.length - 2);
    this.#stop();
    this.#last.place = place;
    if (main.length > 1) this.#paint(main[i], main[i + 1], place - i);
  }

  /** Goes through the main stages once. @param {() => void} ended called after the last */
  play(ended) {
    const { main } = this.#last.data;
    const last = main.length - 1;
    const begin = performance.now();
    let frame = 0;
    let reached = -1;
    /** @param {number} now */
    const step = (now) => {
      const at = Math.max(0, now - begin) / (PLAY_MS + REST_MS);
      const i = Math.min(last, Math.floor(at));
      if (i !== reached) this.on.stage(main[i]);
      reached = i;
      const part = still() ? 0 : Math.min(1, ((at - i) * (PLAY_MS + REST_MS)) / PLAY_MS);
      this.scrub(Math.min(last, i + part));
      this.#isPlaying = at < last;
      if (this.#isPlaying) frame = requestAnimationFrame(step);
      else ended();
    };
    this.#stop();
    this.#stop = () => cancelAnimationFrame(frame);
    this.#isPlaying = true;
    step(begin);
  }

  /** Films `play` as WebM. @param {(film: Blob) => void} saved */
  film(saved) {
    const recorder = new MediaRecorder(this.canvas.captureStream(FRAMES_PER_SECOND));
    /** @type {Blob[]} */
    const parts = [];
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = () => saved(new Blob(parts, { type: recorder.mimeType }));
    this.#isFilming = true;
    recorder.start();
    this.play(() =>
      setTimeout(() => {
        recorder.stop();
        this.#isFilming = false;
      }, REST_MS),
    );
  }

  /** Paints a part of the way from one stage to another. @type {(from: number, to: number, part: number) => void} */
  #paint(from, to, part) {
    const { data, tensors, heights, reach } = this.#last;
    const ink = inks();
    const blocks = tensors.length;
    const rows = Math.max(180, Math.min(520, 15 * blocks + 60));
    const area = surface(this.canvas, TOP + BOTTOM() + rows);
    const { pen, width, height } = area;
    if (this.#isFilming) {
      pen.fillStyle = ink.paper;
      pen.fillRect(0, 0, width, height);
    }
    const plot = width - LEFT - RIGHT;
    const x = Object.assign(
      (/** @type {number} */ w) => LEFT + ((w + reach) / (2 * reach)) * plot,
      { middle: LEFT + plot / 2 },
    );
    const gap = (height - TOP - BOTTOM()) / Math.max(1, blocks);
    tensors.forEach((_, b) => {
      const lag = (LAG * b) / Math.max(1, blocks - 1);
      const moved = Math.max(0, Math.min(1, part * (1 + LAG) - lag));
      const start = heights[from][b];
      const ridge = heights[to][b].map((end, i) => start[i] + (end - start[i]) * moved);
      this.#paintRidge(pen, x, ridge, TOP + (b + 1) * gap, gap);
      for (const [s, alpha] of [
        [from, 1 - moved],
        [to, moved],
      ])
        this.#fillRidge(pen, ink.stage(data.stages[s].color), alpha, b);
      this.#nameBlock(pen, b, TOP + (b + 1) * gap);
    });
    pen.fillStyle = ink.text;
    pen.textAlign = "left";
    let title = `${data.stages[from].label} → ${data.stages[to].label}`;
    if (from === to || part >= 1) title = data.stages[to].label;
    else if (part <= 0) title = data.stages[from].label;
    pen.fillText(title, LEFT, 14);
    bottomAxis(area, ink, ticks(-reach, reach, width < 480 ? 4 : 8), x, "Weight");
  }

  /**
   * Leaves the path of a ridge, over those behind it.
   * @param {CanvasRenderingContext2D} pen
   * @param {AxisScale} x
   * @param {number[]} ridge
   * @param {number} floor
   * @param {number} gap between two ridges
   */
  #paintRidge(pen, x, ridge, floor, gap) {
    const { reach, tallest } = this.#last;
    const scale = (OVERLAP * Math.max(gap, 14)) / tallest;
    pen.beginPath();
    pen.moveTo(x(-reach), floor);
    ridge.forEach((height, i) => {
      const weight = -reach + ((i + 0.5) * 2 * reach) / BINS;
      pen.lineTo(x(weight), floor - Math.min(scale * height, 5 * OVERLAP * gap));
    });
    pen.lineTo(x(reach), floor);
    Object.assign(pen, { fillStyle: inks().paper, globalAlpha: 0.82 });
    pen.fill();
  }

  /** Fills the path in the color of a stage. @type {(pen: CanvasRenderingContext2D, color: string, alpha: number, b: number) => void} */
  #fillRidge(pen, color, alpha, b) {
    const { tensors, picked } = this.#last;
    pen.fillStyle = color;
    pen.strokeStyle = color;
    pen.lineWidth = tensors[b] === picked ? 2.5 : 1;
    pen.globalAlpha = 0.28 * alpha;
    pen.fill();
    pen.globalAlpha = alpha;
    pen.stroke();
    pen.globalAlpha = 1;
  }

  /** @type {(pen: CanvasRenderingContext2D, b: number, floor: number) => void} */
  #nameBlock(pen, b, floor) {
    const { data, tensors, picked } = this.#last;
    const ink = inks();
    const isPicked = tensors[b] === picked;
    const every = Math.max(1, Math.ceil(tensors.length / MAX_LABELS));
    pen.fillStyle = isPicked ? ink.text : ink.muted;
    pen.textAlign = "right";
    pen.textBaseline = "alphabetic";
    if (isPicked || b % every === 0)
      pen.fillText(String(data.tensors[tensors[b]].block), LEFT - 8, floor);
  }

  /** Magnitudes by block below which 99 % of the weights that are not zero lie. */
  widths() {
    const { data, tensors, s } = this.#last;
    return tensors.map(
      (t) => /** @type {[number, number]} */ ([data.tensors[t].block, data.reach(t, [s], 0.99)]),
    );
  }

  note() {
    const { data, tensors, module, s, reach } = this.#last;
    const tails = tensors.map((t) => data.tail(t, s));
    const zeros = tails.reduce((sum, tail) => sum + tail.zeros, 0);
    const all = tails.reduce((sum, tail) => sum + tail.n, 0) || 1;
    return `${shortName(module)}, ${data.stages[s].label}: n = ${tensors.length} blocks, one axis (±${number(reach)}) and scale, ${number((100 * zeros) / all)} % exact zeros left out, tall peaks clipped. Frames between stages are drawn, not measured.`;
  }

  /** @returns {Figures} */
  table() {
    const { data, tensors, s } = this.#last;
    const bins = Array.from({ length: data.bins }, (_, i) => `Bin ${i}`);
    const rows = tensors.map((t) => [
      data.tensors[t].block,
      ...data.range(t),
      data.tail(t, s).zeros,
      ...data.counts(t, s),
    ]);
    return [["Block", "From", "To", "Exact zeros", ...bins], rows];
  }
}
