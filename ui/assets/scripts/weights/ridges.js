/* One module in every block, one histogram behind the other: between two stages the blocks follow one another, like a
   zip. Nothing between two stages is measured. */
import { axisScale, bottomAxis, em, inks, number, surface, ticks } from "./canvas.js";
import { rebinned } from "./histogram.js";
import { shortName, smoothed } from "./words.js";
/** @import {AxisScale} from "./canvas.js" */
/** @import {Histograms} from "./histograms.js" */
/** @import {Figures} from "./tables.js" */

/**
 * Histograms of a module without exact zeros, on a common axis and scale.
 * @typedef {object} RidgeData
 * @property {string} key
 * @property {Histograms} data
 * @property {string} module
 * @property {number[]} tensors by block
 * @property {number[][][]} heights percent by stage, block, bin
 * @property {number} reach half of the axis
 * @property {number} tallest height of the first stage
 */
/**
 * @typedef {object} RidgesInput
 * @property {Histograms} data
 * @property {number} t the tensor that is framed
 * @property {number} from
 * @property {number} to
 * @property {number} part of the way between the two stages
 * @property {number} [height]
 */

const LEFT = 44;
const RIGHT = 12;
const TITLE = 20;
const BOTTOM = () => em(2.25);
const BINS = 128;
const OVERLAP = 4; // rows that the tallest ridge covers
const MIN_GAP = 14; // of rows, from which the height of ridges is taken
const MOST_GROWN = 2; // times the tallest ridge of the first stage that a ridge may be high
const MOST_BLOCKS = 0.8; // share of blocks that the axis shows whole
const LAG = 1.2; // of the last block behind the first
const MAX_LABELS = 10;

/** @type {(data: Histograms, module: string) => RidgeData} */
function read(data, module) {
  const tensors = data.blocks.map((block) => data.at(block, module)).filter((t) => t >= 0);
  const reaches = tensors.map((t) => data.reach(t, data.main)).sort((a, b) => a - b);
  const reach = reaches[Math.floor(MOST_BLOCKS * (tensors.length - 1))];
  const heights = data.stages.map((_, s) =>
    tensors.map((t) => smoothed(Array.from(rebinned(data, t, s, [-reach, reach], BINS)))),
  );
  const first = Math.max(...heights[data.main[0]].flat());
  const tallest = Math.min(Math.max(...heights.flat(2)), MOST_GROWN * first) || 1;
  return { key: `${data.etag} ${module}`, data, module, tensors, heights, reach, tallest };
}

export class Ridges {
  /** @type {(RidgeData & {input: RidgesInput, top: number, gap: number, rise: number}) | null} */
  #drawn = null;
  /** @param {HTMLCanvasElement} canvas @param {{hover: (t: number) => void, pick: (t: number) => void}} on */
  constructor(canvas, on) {
    this.canvas = canvas;
    canvas.onpointermove = (event) => on.hover(this.#tensorAt(event));
    canvas.onclick = (event) => {
      const t = this.#tensorAt(event);
      if (t >= 0) on.pick(t);
    };
    canvas.onpointerleave = () => on.hover(-1);
  }

  /** The ridges drawn last. */
  get #last() {
    if (!this.#drawn) throw new Error("No ridges have been drawn.");
    return this.#drawn;
  }

  /** Tensor of the ridge under the pointer; -1 for none. @param {MouseEvent} event */
  #tensorAt({ offsetY }) {
    if (!this.#drawn) return -1;
    const { tensors, top, gap } = this.#drawn;
    return tensors[Math.floor((offsetY - top) / gap)] ?? -1;
  }

  /** @param {RidgesInput} input */
  draw(input) {
    const { data, t, from, to, part } = input;
    const { module } = data.tensors[t];
    const ridges = this.#drawn?.key === `${data.etag} ${module}` ? this.#drawn : read(data, module);
    const { tensors, heights, reach } = ridges;
    const ink = inks();
    const blocks = tensors.length;
    const rows = Math.max(180, Math.min(520, 15 * blocks + 60));
    const area = surface(this.canvas, input.height ?? TITLE + BOTTOM() + rows);
    const { pen, width, height } = area;
    const room = height - TITLE - BOTTOM();
    const rise = OVERLAP * Math.max(MIN_GAP, room / (blocks + OVERLAP - 1));
    const gap = (room - rise) / Math.max(1, blocks - 1);
    const top = TITLE + rise - gap; // the first ridge is as high as the others
    this.#drawn = { ...ridges, input, top, gap, rise };
    const x = axisScale([-reach, reach], LEFT, width - RIGHT);
    tensors.forEach((_, b) => {
      const lag = (LAG * b) / Math.max(1, blocks - 1);
      const moved = Math.max(0, Math.min(1, part * (1 + LAG) - lag));
      const start = heights[from][b];
      const ridge = heights[to][b].map((end, i) => start[i] + (end - start[i]) * moved);
      this.#paintRidge(pen, x, ridge, top + (b + 1) * gap);
      for (const [s, alpha] of [
        [from, 1 - moved],
        [to, moved],
      ])
        this.#fillRidge(pen, ink.stage(data.stages[s].color), alpha, b);
      this.#nameBlock(pen, b, top + (b + 1) * gap);
    });
    pen.fillStyle = ink.text;
    pen.textAlign = "left";
    let title = `${data.stages[from].label} → ${data.stages[to].label}`;
    if (from === to || part >= 1) title = data.stages[to].label;
    else if (part <= 0) title = data.stages[from].label;
    pen.fillText(title, LEFT, 14);
    bottomAxis(area, ink, ticks(-reach, reach, width < 480 ? 4 : 8), x, "Weight");
  }

  /** Leaves the path of a ridge, over those behind it. @param {CanvasRenderingContext2D} pen @param {AxisScale} x
      @param {number[]} ridge @param {number} floor */
  #paintRidge(pen, x, ridge, floor) {
    const { reach, tallest, rise } = this.#last;
    pen.beginPath();
    pen.moveTo(x(-reach), floor);
    ridge.forEach((height, i) => {
      const weight = -reach + ((i + 0.5) * 2 * reach) / BINS;
      pen.lineTo(x(weight), floor - rise * Math.min(1, height / tallest));
    });
    pen.lineTo(x(reach), floor);
    Object.assign(pen, { fillStyle: inks().paper, globalAlpha: 0.82 });
    pen.fill();
  }

  /** Fills the path in the color of a stage. @type {(pen: CanvasRenderingContext2D, color: string, alpha: number, b: number) => void} */
  #fillRidge(pen, color, alpha, b) {
    const { tensors, input } = this.#last;
    pen.fillStyle = color;
    pen.strokeStyle = color;
    pen.lineWidth = tensors[b] === input.t ? 2.5 : 1;
    pen.globalAlpha = 0.28 * alpha;
    pen.fill();
    pen.globalAlpha = alpha;
    pen.stroke();
    pen.globalAlpha = 1;
  }

  /** @type {(pen: CanvasRenderingContext2D, b: number, floor: number) => void} */
  #nameBlock(pen, b, floor) {
    const { data, tensors, input } = this.#last;
    const ink = inks();
    const isPicked = tensors[b] === input.t;
    const every = Math.max(1, Math.ceil(tensors.length / MAX_LABELS));
    pen.fillStyle = isPicked ? ink.text : ink.muted;
    pen.textAlign = "right";
    pen.textBaseline = "alphabetic";
    if (isPicked || b % every === 0)
      pen.fillText(String(data.tensors[tensors[b]].block), LEFT - 8, floor);
  }

  note() {
    const { data, tensors, module, input, reach } = this.#last;
    return `${shortName(module)}, ${data.stages[input.to].short}: n = ${tensors.length} blocks, one axis (±${number(reach)}), exact zeros left out.`;
  }

  /** @returns {Figures} */
  table() {
    const { data, tensors, input } = this.#last;
    const bins = Array.from({ length: data.bins }, (_, i) => `Bin ${i}`);
    const rows = tensors.map((t) => [
      data.tensors[t].block,
      ...data.range(t),
      data.tail(t, input.to).zeros,
      ...data.counts(t, input.to),
    ]);
    return [["Block", "From", "To", "Exact zeros", ...bins], rows];
  }
}
