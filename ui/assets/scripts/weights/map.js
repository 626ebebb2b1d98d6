/* The map of all layers: blocks from left to right, modules from top to bottom. */
import { bottomAxis, diverging, inks, number, sequential, surface } from "./canvas.js";

const LEFT = 76, TOP = 34, BOTTOM = 36, PRINTED = 12; // up to so many blocks the figures fit into the cells
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The 2 % and 98 % quantile of the values, or the same to both sides of 0. */
export function limits(values, even) {
  const known = values.filter(Number.isFinite).map((v) => (even ? Math.abs(v) : v)).sort((a, b) => a - b);
  if (!known.length) return [0, 1];
  const at = (part) => known[Math.round(part * (known.length - 1))];
  if (even) return [-(at(0.98) || 1), at(0.98) || 1];
  const [low, high] = [at(0.02), at(0.98)], room = 0.1 * Math.abs(low) || 1;
  return high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)) ? [low, high] : [low - room, high + room];
}

export class LayerMap {
  #shown = null; #hovered = -1;

  /** @param {{hover: (t: number) => void, pick: (t: number) => void}} on */
  constructor(canvas, on) {
    this.canvas = canvas;
    canvas.onpointermove = (event) => {
      const t = event.pointerType === "touch" ? -1 : this.#at(event);
      if (t !== this.#hovered) on.hover(this.#hovered = t);
    };
    canvas.onpointerleave = () => { if (this.#hovered >= 0) on.hover(this.#hovered = -1); };
    canvas.onclick = (event) => { const t = this.#at(event); if (t >= 0) on.pick(t); };
    canvas.onkeydown = (event) => {
      const move = MOVES[event.key], next = move ? this.#beside(move) : -1;
      if (move) event.preventDefault();
      if (next >= 0) on.pick(next);
    };
  }

  /** The tensor under the pointer; -1 beside the cells. */
  #at({ offsetX, offsetY }) {
    if (!this.#shown) return -1;
    const { data, across, down } = this.#shown, i = Math.floor((offsetX - LEFT) / across), j = Math.floor((offsetY - TOP) / down);
    return i >= 0 && j >= 0 && i < data.blocks.length && j < data.modules.length ? data.at(data.blocks[i], data.modules[j]) : -1;
  }

  /** The next tensor that way, over holes; -1 at the edge. */
  #beside([right, down]) {
    const { data, picked } = this.#shown, { block, module } = data.tensors[picked];
    let i = data.blocks.indexOf(block) + right, j = data.modules.indexOf(module) + down;
    for (; data.blocks[i] !== undefined && data.modules[j] !== undefined; i += right, j += down) {
      const t = data.at(data.blocks[i], data.modules[j]);
      if (t >= 0) return t;
    }
    return -1;
  }

  /** @param {{data: Histograms, values: number[], label: string, unit: string, even: boolean, picked: number}} shown */
  draw({ data, values, label, unit, even, picked }) {
    const rows = data.modules.length, area = surface(this.canvas, TOP + BOTTOM + Math.max(30 * rows, Math.min(270, 60 * rows)));
    const { pen, width, height, line } = area, ink = inks(), columns = data.blocks.length;
    const across = (width - LEFT - 4) / columns, down = (height - TOP - BOTTOM) / rows, [low, high] = limits(values, even);
    pen.fillStyle = ink.paper; // which the canvas writes in six digits
    const middle = pen.fillStyle.match(/\w\w/g).map((hex) => parseInt(hex, 16));
    const part = (value) => (even ? value / high : (value - low) / (high - low));
    const colour = (value) => (even ? diverging(part(value), middle) : sequential(part(value)));
    this.#shown = { data, across, down, picked };
    const x = (block) => LEFT + data.blocks.indexOf(block) * across, y = (module) => TOP + data.modules.indexOf(module) * down;
    pen.textBaseline = "middle";
    data.tensors.forEach(({ block, module }, t) => {
      if (!Number.isFinite(values[t])) return;
      pen.fillStyle = colour(values[t]);
      pen.fillRect(x(block), y(module), Math.max(1, across - 1), down - 1);
      if (columns > PRINTED) return;
      const [red, green, blue] = pen.fillStyle.match(/\w\w/g).map((hex) => parseInt(hex, 16));
      pen.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue < 140 ? "#fff" : "#14181F";
      pen.textAlign = "center";
      pen.fillText(number(values[t]), x(block) + across / 2, y(module) + down / 2, across - 4);
    });
    for (const t of [picked, this.#hovered]) {
      if (t < 0 || !data.tensors[t]) continue;
      const { block, module } = data.tensors[t], box = [x(block) - 1, y(module) - 1, across + 1, down + 1];
      for (const [strokeStyle, lineWidth] of [[ink.text, 4], [ink.paper, 1.5]]) {
        Object.assign(pen, { strokeStyle, lineWidth });
        pen.strokeRect(...box);
      }
    }
    pen.fillStyle = ink.muted;
    pen.textAlign = "right";
    for (const module of data.modules) pen.fillText(module.split(".").pop(), LEFT - 8, y(module) + down / 2, LEFT - 8);
    const every = Math.ceil((columns * 2.2 * line) / (width - LEFT));
    const marks = data.blocks.filter((_, i) => i % every === 0);
    bottomAxis(area, ink, marks, Object.assign((block) => x(block) + across / 2, { middle: LEFT + (columns * across) / 2 }), "Block");
    this.#bar(area, ink, colour, low, high, `${label}${unit ? `, ${unit.trim()}` : ""}`);
  }

  /** What the colours mean, above the cells. */
  #bar({ pen, width, line }, ink, colour, low, high, label) {
    const long = Math.min(220, width / 3), left = width - long - 4, steps = 40;
    for (let i = 0; i < steps; i++) {
      pen.fillStyle = colour(low + ((i + 0.5) / steps) * (high - low));
      pen.fillRect(left + (i * long) / steps, 4, long / steps + 0.5, 8);
    }
    pen.fillStyle = ink.muted;
    pen.textBaseline = "top";
    pen.textAlign = "left";
    pen.fillText(number(low), left, 15);
    pen.textAlign = "right";
    pen.fillText(number(high), left + long, 15);
    pen.fillText(label, left - 12, Math.max(1, 8 - line / 2), left - 16);
  }
}
