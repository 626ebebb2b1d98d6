/* The map of all layers: blocks from left to right, modules from top to bottom. */
import { bottomAxis, diverging, em, inks, number, sequential, surface } from "./canvas.js";

const LEFT = () => em(4.75),
  TOP = () => em(2.125),
  BOTTOM = () => em(2.25),
  PRINTED = 12; // up to so many blocks the figures fit into the cells
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The 2 % and 98 % quantile of the values, or the same to both sides of 0. */
export function limits(values, even) {
  const known = values
    .filter(Number.isFinite)
    .map((v) => (even ? Math.abs(v) : v))
    .sort((a, b) => a - b);
  if (!known.length) return [0, 1];
  const at = (part) => known[Math.round(part * (known.length - 1))];
  if (even) return [-(at(0.98) || 1), at(0.98) || 1];
  const [low, high] = [at(0.02), at(0.98)],
    room = 0.1 * Math.abs(low) || 1;
  return high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high))
    ? [low, high]
    : [low - room, high + room];
}

export class LayerMap {
  #shown = null;
  #hovered = -1;
  #from = null;

  /** @param {{hover: (t: number) => void, pick: (t: number) => void, choose?: (tensors: number[], adds: boolean) => void}} on
      `choose`: all of a row, of a column, or of a rectangle that is drawn with the pointer or with Shift and arrows. */
  constructor(canvas, on) {
    Object.assign(this, { canvas, on });
    canvas.onpointermove = (event) => {
      if (this.#from && event.buttons) this.#brush(event);
      const t = event.pointerType === "touch" ? -1 : this.#at(event);
      if (t !== this.#hovered) on.hover((this.#hovered = t));
    };
    canvas.onpointerleave = () => {
      if (this.#hovered >= 0) on.hover((this.#hovered = -1));
    };
    canvas.onpointerdown = (event) => {
      this.#from = on.choose && this.#shown && !event.button ? this.#place(event) : null;
    };
    canvas.onclick = (event) => {
      const t = this.#at(event),
        line = on.choose ? this.#line(event) : [];
      if (line.length) on.choose(line, event.shiftKey);
      else if (t >= 0 && !this.#from?.brushed) {
        if (event.shiftKey && on.choose) on.choose([t], true);
        else on.pick(t);
      }
      this.#from = null;
    };
    canvas.onkeydown = (event) => {
      const move = MOVES[event.key],
        next = move ? this.#beside(move) : -1;
      if (move) event.preventDefault();
      if (next >= 0 && event.shiftKey && on.choose) {
        on.pick(next, true);
        on.choose([next], true);
      } else if (next >= 0) on.pick(next);
    };
  }

  /** Column and row under the pointer, also beside the cells. */
  #place({ offsetX, offsetY }) {
    const { across, down } = this.#shown;
    return { i: Math.floor((offsetX - LEFT()) / across), j: Math.floor((offsetY - TOP()) / down) };
  }

  /** The tensor under the pointer; -1 beside the cells. */
  #at(event) {
    if (!this.#shown) return -1;
    const { data } = this.#shown,
      { i, j } = this.#place(event);
    return i >= 0 && j >= 0 && i < data.blocks.length && j < data.modules.length
      ? data.at(data.blocks[i], data.modules[j])
      : -1;
  }

  /** All tensors of the row or column whose name is under the pointer. */
  #line(event) {
    const { data } = this.#shown,
      { i, j } = this.#place(event),
      { blocks, modules } = data;
    const row = i < 0 && j in modules,
      column = j >= modules.length && i in blocks;
    return data.tensors.flatMap(({ block, module }, t) =>
      (row && module === modules[j]) || (column && block === blocks[i]) ? [t] : [],
    );
  }

  #brush(event) {
    const { data } = this.#shown,
      to = this.#place(event),
      from = this.#from;
    if (!from.brushed && to.i === from.i && to.j === from.j) return;
    from.brushed = true;
    const within = (at, side) =>
      at >= Math.min(from[side], to[side]) && at <= Math.max(from[side], to[side]);
    const inside = data.tensors.flatMap(({ block, module }, t) =>
      block >= 0 &&
      within(data.blocks.indexOf(block), "i") &&
      within(data.modules.indexOf(module), "j")
        ? [t]
        : [],
    );
    if (inside.length) this.on.choose(inside, event.shiftKey);
  }

  /** The next tensor that way, over holes; -1 at the edge. */
  #beside([right, down]) {
    const { data, picked } = this.#shown,
      { block, module } = data.tensors[picked];
    let i = Math.max(0, data.blocks.indexOf(block)) + right,
      j = data.modules.indexOf(module) + down;
    for (; data.blocks[i] !== undefined && data.modules[j] !== undefined; i += right, j += down) {
      const t = data.at(data.blocks[i], data.modules[j]);
      if (t >= 0) return t;
    }
    return -1;
  }

  /** @param {{data: Histograms, values: number[], label: string, unit: string, even: boolean, picked: number, log?: boolean, colours?: string[],
      key?: {words: string, colour: string}[], chosen?: Set<number>, pinned?: Set<number>, height?: number}} shown
      A tensor outside of the blocks takes a row. `colours` in place of those of the values, explained by `key`; what is not `chosen` is paler. */
  draw({
    data,
    values,
    label,
    unit,
    even,
    picked,
    log,
    colours,
    key,
    chosen,
    pinned,
    height: tall,
  }) {
    const rows = data.modules.length,
      area = surface(
        this.canvas,
        tall ?? TOP() + BOTTOM() + Math.max(30 * rows, Math.min(330, 60 * rows)),
      );
    const { pen, width, height, line } = area,
      ink = inks(),
      columns = data.blocks.length;
    const scaled = log ? values.map((v) => (v > 0 ? Math.log10(v) : NaN)) : values;
    const across = (width - LEFT() - 4) / columns,
      down = (height - TOP() - BOTTOM()) / rows,
      [low, high] = limits(scaled, even);
    pen.fillStyle = ink.paper; // which the canvas writes in six digits
    const middle = pen.fillStyle.match(/\w\w/g).map((hex) => parseInt(hex, 16));
    const part = (value) => (even ? value / high : (value - low) / (high - low));
    const colour = (value) => (even ? diverging(part(value), middle) : sequential(part(value)));
    this.#shown = { data, across, down, picked };
    const x = (block) => LEFT() + Math.max(0, data.blocks.indexOf(block)) * across,
      y = (module) => TOP() + data.modules.indexOf(module) * down,
      wide = (block) => (block < 0 ? columns * across : across);
    pen.textBaseline = "middle";
    data.tensors.forEach(({ block, module }, t) => {
      if (!colours && !Number.isFinite(scaled[t])) return;
      pen.fillStyle = colours?.[t] ?? colour(scaled[t]);
      pen.globalAlpha = !chosen?.size || chosen.has(t) ? 1 : 0.35;
      pen.fillRect(x(block), y(module), Math.max(1, wide(block) - 1), down - 1);
      pen.globalAlpha = 1;
      if (columns > PRINTED && !pinned?.has(t)) return;
      const [red, green, blue] = pen.fillStyle.match(/\w\w/g).map((hex) => parseInt(hex, 16));
      pen.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue < 140 ? "#fff" : "#14181F";
      pen.textAlign = "center";
      const words = pinned?.has(t) ? "◆" : colours ? "" : number(values[t]);
      if (words)
        pen.fillText(words, x(block) + wide(block) / 2, y(module) + down / 2, wide(block) - 4);
    });
    for (const t of [picked, this.#hovered]) {
      if (t < 0 || !data.tensors[t]) continue;
      const { block, module } = data.tensors[t],
        box = [x(block) - 1, y(module) - 1, wide(block) + 1, down + 1];
      for (const [strokeStyle, lineWidth] of [
        [ink.text, 4],
        [ink.paper, 1.5],
      ]) {
        Object.assign(pen, { strokeStyle, lineWidth });
        pen.strokeRect(...box);
      }
    }
    pen.fillStyle = ink.muted;
    pen.textAlign = "right";
    for (const module of data.modules)
      pen.fillText(module.split(".").pop(), LEFT() - 8, y(module) + down / 2, LEFT() - 8);
    const every = Math.ceil((columns * 2.2 * line) / (width - LEFT()));
    const marks = data.blocks.filter((_, i) => i % every === 0);
    bottomAxis(
      area,
      ink,
      marks,
      Object.assign((block) => x(block) + across / 2, { middle: LEFT() + (columns * across) / 2 }),
      "Block",
    );
    if (key) this.#key(area, ink, key);
    else {
      const known = scaled.filter(Number.isFinite),
        said = (value) => number(log ? 10 ** value : value, 2);
      const ends = [
        `${known.some((v) => v < low) ? "≤ " : ""}${said(low)}`,
        `${known.some((v) => v > high) ? "≥ " : ""}${said(high)}`,
      ];
      this.#bar(area, ink, colour, low, high, `${label}${unit ? `, ${unit.trim()}` : ""}`, ends);
    }
  }

  /** What each colour means, above the cells. */
  #key({ pen, width, line }, ink, key) {
    let left = LEFT();
    Object.assign(pen, { textAlign: "left", textBaseline: "middle" });
    for (const { words, colour } of key) {
      const long = 18 + pen.measureText(words).width;
      if (left + long > width) return;
      pen.fillStyle = colour;
      pen.fillRect(left, TOP() / 2 - 5, 10, 10);
      pen.fillStyle = ink.text;
      pen.fillText(words, left + 14, TOP() / 2);
      left += long + line;
    }
  }

  /** What the colours mean, above the cells. */
  #bar({ pen, width, line }, ink, colour, low, high, label, ends) {
    const room = 8 + ends.reduce((sum, end) => sum + pen.measureText(end).width, 0),
      long = Math.max(room, Math.min(220, width / 3)),
      left = width - long - 4,
      steps = 40;
    for (let i = 0; i < steps; i++) {
      pen.fillStyle = colour(low + ((i + 0.5) / steps) * (high - low));
      pen.fillRect(left + (i * long) / steps, 4, long / steps + 0.5, 8);
    }
    pen.fillStyle = ink.muted;
    pen.textBaseline = "top";
    pen.textAlign = "left";
    pen.fillText(ends[0], left, 15);
    pen.textAlign = "right";
    pen.fillText(ends[1], left + long, 15);
    pen.fillText(label, left - 12, Math.max(1, 8 - line / 2), left - 16);
  }
}
