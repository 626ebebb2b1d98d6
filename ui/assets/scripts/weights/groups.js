/* Group magnitudes: the codes as a comb below the dense histogram, the sorted magnitudes, a map of the groups in the
   same order, and the weights of the worst groups. Changes of magnitudes are in percent. */
import {
  axisScale,
  bottomAxis,
  em,
  inks,
  number,
  share,
  stroke,
  surface,
  ticks,
  tween,
} from "./canvas.js";
import { fetched } from "./histograms.js";
import { grid, lines, readOut } from "./plots.js";
/** @import {Histograms, Packed, PackedArray} from "./histograms.js" */
/** @import {Plot} from "./plots.js" */
/** @import {State} from "./state.js" */
/** @import {Figures} from "./tables.js" */

/** @typedef {{row: number, group: number, error: number, clipped: number | null, change: number}} WorstGroup */
/** @typedef {{title: string, gridTitle: string, harm: string, format: string, stage: string, steps: number[], rows: number,
    groups: number, listed: WorstGroup[]}} GroupsHead */
/** @typedef {{missing: string, other: string, label: string, run: string}} NoGroups `other`: a tensor that has some;
    `run`: a run that has some. */
/** @typedef {Packed<GroupsHead>} Groups */

const { create, find, findAll } = window.slimscope;
const HEIGHT = 260;
const SIDE = 12;
const TOP = 8;
const BOTTOM = () => em(2.25);
const SNAP_MS = 900;
const TOOTH = 0.22; // width of a tooth, in steps of the grid

/** @type {(array: PackedArray, i: number) => Float32Array} */
const row = ({ shape, data }, i) => {
  const size = shape.slice(1).reduce((product, n) => product * n, 1);
  return Float32Array.from(data.subarray(i * size, (i + 1) * size));
};

/** A change with its sign. @param {number} value */
const signed = (value) => `${value > 0 ? "+" : ""}${number(value, 2)}\u00a0%`;

export class GroupsLens {
  #stop = () => {};
  #snapped = "";

  /** Shown groups; null if there are none. @type {Groups | null} */
  groups = null;
  #key = "";
  /** @type {Promise<GroupsHead | null>} */
  #loading = Promise.resolve(null);

  /** @param {HTMLElement} panel @param {(parts: Partial<State>) => void} choose */
  constructor(panel, choose) {
    this.panel = panel;
    this.choose = choose;
    /** @type {{at: number, color: string}} */
    this.drawn = { at: 0, color: "" };
    /** @type {Record<string, Plot>} */
    this.plots = {};
    for (const figure of findAll(panel, "figure")) {
      const canvas = find(figure, "canvas", HTMLCanvasElement);
      readOut(canvas, find(figure, "output"), () => this.plots[figure.dataset.figure ?? ""]);
    }
  }

  /** @param {string} name */
  #canvas(name) {
    return find(this.panel, `[data-figure="${name}"] canvas`, HTMLCanvasElement);
  }

  /** @type {(name: string, title: string) => void} */
  #say(name, title) {
    find(this.panel, `[data-figure="${name}"] h3`).textContent = title;
  }

  /** Loads the groups of a tensor, once for each stage. @type {(data: Histograms, t: number, s: number) => Promise<GroupsHead | null>} */
  load(data, t, s) {
    const key = `${data.etag} ${t} ${s}`;
    if (this.#key !== key) {
      const query = { run: data.run, tensor: data.tensors[t].name, groups: data.stages[s].name };
      this.#loading = this.#fetch(query, () => this.#key === key);
    }
    this.#key = key;
    return this.#loading;
  }

  /** @type {(query: Record<string, string>, isWanted: () => boolean) => Promise<GroupsHead | null>} */
  async #fetch(query, isWanted) {
    /** @type {Partial<Packed<any>> & {head: any}} */
    const packed = await fetched(query).catch((error) => ({
      head: { missing: `The groups could not be loaded. ${error.message}` },
    }));
    if (!isWanted()) return null;
    const isMissing = Boolean(packed.head.missing);
    this.groups = isMissing ? null : /** @type {Groups} */ (packed);
    find(this.panel, ".weights-groups").hidden = isMissing;
    find(this.panel, ".empty").hidden = !isMissing;
    find(this.panel, ".save-menu").hidden = isMissing;
    if (isMissing) this.#offer(packed.head);
    return this.groups?.head ?? null;
  }

  /** Shows why there are no groups, with a link to a tensor or run that has some. @param {NoGroups} reason */
  #offer({ missing, other, label, run }) {
    find(this.panel, ".empty p").textContent = missing;
    const button = find(this.panel, "[data-other]");
    button.hidden = !other && !run;
    button.textContent = `Show ${label || run}`;
    button.onclick = () => this.choose(other ? { tensor: other } : { run });
    find(this.panel, ".empty a").hidden = !button.hidden;
  }

  /** @param {string} step the recorded one nearest to it is drawn; the last by default @param {string} group number
      among the worst @param {string} color of the stage @returns the step that is drawn */
  draw(step, group, color) {
    if (!this.groups) return null;
    const { head, arrays, etag } = this.groups;
    const distances = head.steps.map((each) => Math.abs(each - Number(step)));
    const at = step ? distances.indexOf(Math.min(...distances)) : head.steps.length - 1;
    const picked = Math.min(Number(group), Math.max(0, head.listed.length - 1));
    this.drawn = { at, color };
    this.#say("comb", head.gridTitle);
    this.#snap(etag);
    const shown = head.steps.map((each, i) => ({
      label: `Step ${each}`,
      color: i === at ? color : "#5B6472",
      dash: i === at ? "solid" : "dot",
      thin: i !== at && i !== head.steps.length - 1,
      x: Array.from(row(arrays.sorted, i), (_, k) => (100 * k) / (arrays.sorted.shape[1] - 1)),
      y: row(arrays.sorted, i),
    }));
    this.#say("sorted", `Sorted magnitudes at step ${head.steps[at]}`);
    this.plots.sorted = lines(this.#canvas("sorted"), {
      series: [...shown.filter((_, i) => i !== at), shown[at]],
      names: ["Change of m, %", "Share of the groups, %"],
      height: HEIGHT,
      signed: true,
    });
    this.#map(this.groups, at);
    this.#worst(this.groups, picked, color);
    return head.steps[at];
  }

  /** Map of the groups, with the color scale of the last step. @param {Groups} groups @param {number} at */
  #map({ head, arrays }, at) {
    const [steps, rows, columns] = arrays.cells.shape;
    const last = Math.max(...row(arrays.cells, steps - 1).map(Math.abs)) || 1;
    const each = Math.ceil(head.rows / rows);
    this.#say("map", `${head.rows.toLocaleString("en")} rows by magnitude × ${head.groups} groups`);
    this.plots.map = grid(this.#canvas("map"), {
      panels: [
        {
          label: "",
          rows,
          columns,
          data: row(arrays.cells, at),
          spans: [head.rows, head.groups],
          words: (i, j) =>
            `rank ${i * each + 1} of ${head.rows}, group ${Math.floor((j * head.groups) / columns)}`,
        },
      ],
      even: true,
      ends: [-last, last],
      unit: " %",
      names: ["Row, by magnitude", "Group along the inputs"],
      height: HEIGHT,
    });
  }

  /** Worst groups as buttons, and the selected group on its grid. @param {Groups} groups @param {number} picked @param {string} color */
  #worst({ head, arrays }, picked, color) {
    this.#say("worst", head.harm);
    const list = find(this.panel, "[data-worst]");
    list.replaceChildren(
      ...head.listed.map((worst, i) => {
        const button = create("button", {
          type: "button",
          className: "small-button",
          textContent: `Row ${worst.row}, group ${worst.group}`,
          title: `Error ${number(worst.error)}, ${share(worst.clipped ?? NaN)} clipped, magnitude ${signed(worst.change)}`,
        });
        button.setAttribute("aria-pressed", String(i === picked));
        button.onclick = () => this.choose({ group: String(i) });
        return button;
      }),
    );
    if (!head.listed.length) {
      surface(this.#canvas("worst"), 24);
      list.textContent = "Single weights are stored when training ends.";
      return;
    }
    const dense = row(arrays.dense, picked);
    const now = row(arrays.quantized, picked);
    const points = row(arrays.grids, picked);
    this.#moves(dense, now, points, color);
    const half = (points[1] - points[0]) / 2;
    const beyond = dense.filter(
      (w) => w < points[0] - half || w > points[points.length - 1] + half,
    );
    const { row: output, group, change } = head.listed[picked];
    find(this.panel, "[data-said]").textContent =
      `Row ${output}, group ${group}, number ${picked + 1} by error: ${beyond.length} of ${dense.length} weights clipped, magnitude ${signed(change)}.`;
  }

  /** Line of each weight from its dense value (above) to its grid point (below). @type {(dense: Float32Array, now: Float32Array, points: Float32Array, color: string) => void} */
  #moves(dense, now, points, color) {
    const ink = inks();
    const area = surface(this.#canvas("worst"), HEIGHT - 60);
    const { pen, width, height } = area;
    const reach = 1.04 * Math.max(...[...dense, ...points].map(Math.abs));
    const x = axisScale([-reach, reach], SIDE, width - SIDE);
    const [top, floor] = [TOP + em(1), height - BOTTOM()];
    Object.assign(pen, { strokeStyle: ink.muted, lineWidth: 1, globalAlpha: 0.5 });
    for (const point of points) stroke(pen, x(point), floor - 8, x(point), floor);
    pen.strokeStyle = ink.stage(color);
    dense.forEach((w, i) => stroke(pen, x(w), top, x(now[i]), floor - 8));
    pen.globalAlpha = 1;
    for (const [values, level, fill] of /** @type {[Float32Array, number, string][]} */ ([
      [dense, top, ink.muted],
      [now, floor - 8, ink.stage(color)],
    ])) {
      pen.fillStyle = fill;
      for (const w of values) {
        pen.beginPath();
        pen.arc(x(w), level, 2.5, 0, 7);
        pen.fill();
      }
    }
    Object.assign(pen, { fillStyle: ink.muted, textAlign: "left", textBaseline: "bottom" });
    pen.fillText("dense", SIDE, top - 4);
    bottomAxis(area, ink, ticks(-reach, reach, 5), x, "Weight, and the points of the grid");
  }

  /** Animates the rounding to the grid, once per tensor. @param {string} key */
  #snap(key) {
    this.#stop();
    if (this.#snapped === key) return this.#comb(1);
    this.#snapped = key;
    this.#stop = tween((part) => this.#comb(part), SNAP_MS);
  }

  /** Repeats the animation. */
  replay() {
    this.#snapped = "";
    if (this.groups) this.#snap(this.groups.etag);
  }

  /** Shares of the codes as teeth, during the animation from 0 to 1. @param {number} part */
  #comb(part) {
    if (!this.groups) return;
    const { at, color } = this.drawn;
    const { codes, bell } = this.groups.arrays;
    const ink = inks();
    const area = surface(this.#canvas("comb"), HEIGHT);
    const { pen, width, height } = area;
    const shares = row(codes, at);
    const points = shares.length;
    const zero = points / 2; // of a grid that is even around it
    const floor = height - BOTTOM();
    const dense = Array.from({ length: bell.shape[0] }, (_, i) => bell.data[2 * i + 1]);
    const most = Math.max(...shares, ...dense, 0.01);
    const x = axisScale([-0.5, Math.max(1, points) - 0.5], SIDE, width - SIDE);
    const y = (/** @type {number} */ height) => floor - (height / most) * (floor - TOP) * 0.92;
    pen.beginPath();
    dense.forEach((density, i) => pen.lineTo(x(bell.data[2 * i] + zero), y(density)));
    const outline = new Path2D();
    outline.rect(SIDE, TOP, width - 2 * SIDE, floor - TOP);
    pen.save();
    pen.clip(outline);
    Object.assign(pen, { strokeStyle: ink.muted, lineWidth: 1.5, fillStyle: ink.muted });
    pen.stroke();
    pen.globalAlpha = 0.15;
    pen.fill();
    pen.restore();
    const wide = 1 + (TOOTH - 1) * part;
    pen.fillStyle = ink.stage(color);
    pen.globalAlpha = 0.85;
    shares.forEach((height, code) => {
      const left = x(code - wide / 2);
      pen.fillRect(left, y(height), x(code + wide / 2) - left, floor - y(height));
    });
    pen.globalAlpha = 1;
    const marks = ticks(0, points - 1, 8).filter(Number.isInteger);
    bottomAxis(area, ink, marks, x, "Point of the grid (gray: dense weights)");
    this.plots.comb = {
      scale: "",
      at: ({ offsetX }) => {
        const code = Math.floor(((offsetX - SIDE) / (width - 2 * SIDE)) * points);
        const words = `point ${code}: ${share(shares[code])} of the weights`;
        return code in shares ? { panel: 0, i: 0, j: code, words } : null;
      },
    };
  }

  /** Quantiles by step. @returns {Figures | null} */
  table() {
    if (!this.groups) return null;
    const { head, arrays } = this.groups;
    const quantiles = head.steps.map((_, i) => row(arrays.sorted, i));
    const count = arrays.sorted.shape[1];
    return [
      ["Share of the groups, %", ...head.steps.map((step) => `Change at step ${step}, %`)],
      Array.from({ length: count }, (_, k) => [
        String((100 * k) / (count - 1)),
        ...quantiles.map((values) => values[k]),
      ]),
    ];
  }
}
