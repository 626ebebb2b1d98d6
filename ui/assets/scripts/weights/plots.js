/* Plots that several views share: grids of cells, and lines. Each returns what reads it under the pointer. */
import {
  DASHES,
  diverging,
  inks,
  number,
  sequential,
  stroke,
  surface,
  ticks,
  widthOf,
} from "./canvas.js";
import { limits } from "./map.js";

const LEFT = 52,
  RIGHT = 12,
  TOP = 36,
  BOTTOM = 36,
  GAP = 44;

/** @typedef {{label: string, rows: number, columns: number, data: ArrayLike<number>, first?: number[], spans?: number[], named?: number[], marks?: string[]}} Panel
    `data` by rows from the top; `first`: what the rows and columns are numbered from, `spans` how many there are; `named`: what rows are called; `marks`: what stands below
    each column where there is room. */

/** Text that runs upwards from a place. */
function upright(pen, words, x, y, most) {
  pen.save();
  pen.translate(x, y);
  pen.rotate(-Math.PI / 2);
  pen.fillText(words, 0, 0, most);
  pen.restore();
}

/** Panels of cells side by side, on the same colours. `log`: colours on a log scale, zeros stay empty; `dashed`: a
    line on which nothing has changed; `upwards`: rows from the bottom. */
export function grid(canvas, { panels, even, log, unit, names, height = 340, upwards, dashed }) {
  const place = widthOf(canvas),
    across = place < 560 ? 1 : Math.min(panels.length, 4),
    down = Math.ceil(panels.length / across);
  const { pen, width, line } = surface(canvas, down * height),
    ink = inks();
  const values = panels.flatMap(({ data }) =>
    Array.from(data, (value) => (log ? (value > 0 ? Math.log10(value) : NaN) : value)),
  );
  const known = values.filter(Number.isFinite),
    most = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const [low, high] = log
    ? [
        Math.max(
          known.reduce((a, b) => Math.min(a, b), Infinity),
          most - 6,
        ),
        most,
      ]
    : limits(values, even);
  pen.fillStyle = ink.paper;
  const middle = pen.fillStyle.match(/\w\w/g).map((hex) => parseInt(hex, 16)),
    wide = Math.min(
      (width - LEFT - RIGHT - (across - 1) * GAP) / across,
      upwards ? 1.5 * (height - TOP - BOTTOM) : Infinity,
    );
  const colour = (value) =>
    even ? diverging(value / high, middle) : sequential((value - low) / (high - low || 1));
  const start = LEFT + (width - LEFT - RIGHT - across * wide - (across - 1) * GAP) / 2; // narrow panels stand in the middle
  const boxes = panels.map((panel, k) => {
    const left = start + (k % across) * (wide + GAP),
      top = Math.floor(k / across) * height + TOP,
      tall = height - TOP - BOTTOM;
    const dx = wide / panel.columns,
      dy = tall / panel.rows,
      row = (i) => (upwards ? panel.rows - 1 - i : i);
    for (let i = 0; i < panel.rows; i++)
      for (let j = 0; j < panel.columns; j++) {
        const value = values[k * panels[0].data.length + i * panel.columns + j];
        if (!Number.isFinite(value)) continue;
        pen.fillStyle = colour(value);
        const x = Math.floor(left + j * dx),
          y = Math.floor(top + row(i) * dy); // without seams
        pen.fillRect(
          x,
          y,
          Math.ceil(left + (j + 1) * dx) - x,
          Math.ceil(top + (row(i) + 1) * dy) - y,
        );
      }
    if (dashed) {
      Object.assign(pen, { strokeStyle: ink.muted, lineWidth: 1 });
      pen.setLineDash([4, 4]);
      stroke(pen, left, top + tall, left + wide, top);
      pen.setLineDash([]);
    }
    Object.assign(pen, { fillStyle: ink.text, textAlign: "left", textBaseline: "alphabetic" });
    pen.fillText(panel.label, left, top - 8, wide);
    pen.fillStyle = ink.muted;
    const number_of = (side, part) =>
      panel.axis
        ? panel.axis[0] + part * (panel.axis[1] - panel.axis[0])
        : (panel.first?.[side] ?? 0) +
          part * (panel.spans?.[side] ?? [panel.rows, panel.columns][side]);
    const named = panel.marks && dx >= line / 2;
    for (const part of [0, 0.5, 1]) {
      const shown = (side) =>
        panel.axis
          ? number(number_of(side, part), 2)
          : String(Math.floor(number_of(side, part) - (part === 1)));
      pen.textAlign = part === 0 ? "left" : part === 1 ? "right" : "center";
      if (!named) pen.fillText(shown(1), left + part * wide, top + tall + line);
      pen.textAlign = "right";
      const down = panel.named
        ? (Math.floor(part * (panel.rows - 1)) + 0.5) / panel.rows
        : upwards
          ? 1 - part
          : part; // a name stands at its row
      if (k % across === 0)
        pen.fillText(
          panel.named?.[Math.floor(part * (panel.rows - 1))] ?? shown(0),
          left - 6,
          top + down * tall + line / 3,
        );
    }
    pen.textAlign = named ? "right" : "center";
    if (named)
      panel.marks.forEach((words, j) =>
        upright(pen, words, left + (j + 0.5) * dx + line / 4, top + tall + 3, BOTTOM - 3),
      );
    else pen.fillText(names[1], left + wide / 2, top + tall + 2 * line);
    return { panel, left, top, wide, tall, dx, dy, row };
  });
  pen.textAlign = "center";
  upright(pen, names[0], start - LEFT + 12, TOP + (height - TOP - BOTTOM) / 2);
  const scale = `${number(log ? 10 ** low : low)} to ${number(log ? 10 ** high : high)}${unit}`;
  const at = ({ offsetX: x, offsetY: y }) => {
    const box = boxes.find(
      (each) =>
        x >= each.left && x < each.left + each.wide && y >= each.top && y < each.top + each.tall,
    );
    if (!box) return null;
    const i = box.row(Math.floor((y - box.top) / box.dy)),
      j = Math.floor((x - box.left) / box.dx),
      value = box.panel.data[i * box.panel.columns + j];
    return {
      i,
      j,
      panel: box.panel,
      words: `${box.panel.label}, ${box.panel.words?.(i, j) ?? `${i}, ${j}`}: ${number(value, 4)}${unit}`,
    };
  };
  return { at, scale };
}

/** @typedef {{label: string, colour: string, dash: string, x: ArrayLike<number>, y: ArrayLike<number>, names?: ArrayLike<number>,
    marks?: number[], thin?: boolean}} Line */

/** Lines on linear or log axes; `marks` are ringed. */
export function lines(canvas, { series, xLog, yLog, names }) {
  const { pen, width, height, line } = surface(canvas, 340),
    ink = inks();
  const positive = (value) => value > 0,
    own = series.filter((each) => !each.thin);
  const ends = (axis, log) => {
    const all = own
      .flatMap((each) => Array.from(each[axis]))
      .filter(log ? positive : Number.isFinite);
    const [low, high] = [
      all.reduce((a, b) => Math.min(a, b), Infinity),
      all.reduce((a, b) => Math.max(a, b), -Infinity),
    ];
    return log
      ? [Math.log10(Math.max(low, axis === "y" ? high / 1000 : 0) || low), Math.log10(high) + 0.03]
      : [Math.min(0, low), 1.05 * high || 1];
  };
  const [x0, x1] = ends("x", xLog),
    [y0, y1] = ends("y", yLog);
  const scaled = (value, log) => (log ? Math.log10(value) : value);
  const px = (value) =>
    LEFT + ((scaled(value, xLog) - x0) / (x1 - x0 || 1)) * (width - LEFT - RIGHT);
  const py = (value) =>
    height - BOTTOM - ((scaled(value, yLog) - y0) / (y1 - y0 || 1)) * (height - TOP - BOTTOM);
  const decades = (low, high) =>
    Array.from(
      { length: Math.floor(high) - Math.ceil(low) + 1 },
      (_, i) => 10 ** (Math.ceil(low) + i),
    ).filter(Boolean);
  const marksOf = (low, high, log) => {
    const found = log ? decades(low, high) : ticks(low, high, 5);
    return found.length > 1 ? found : [low, (low + high) / 2, high].map((v) => (log ? 10 ** v : v));
  };
  Object.assign(pen, {
    fillStyle: ink.muted,
    strokeStyle: ink.line,
    lineWidth: 1,
    textAlign: "right",
    textBaseline: "middle",
  });
  for (const tick of marksOf(y0, y1, yLog)) {
    pen.fillText(number(tick), LEFT - 6, py(tick), LEFT - 8);
    stroke(pen, LEFT, py(tick), width - RIGHT, py(tick));
  }
  pen.textAlign = "center";
  pen.textBaseline = "alphabetic";
  for (const tick of marksOf(x0, x1, xLog)) pen.fillText(number(tick), px(tick), height - line - 4);
  pen.fillText(names[1], (LEFT + width) / 2, height - 4);
  pen.textAlign = "left";
  pen.fillText(names[0], LEFT, 14);
  pen.save();
  pen.beginPath();
  pen.rect(LEFT, TOP - 6, width - LEFT, height - TOP - BOTTOM + 8);
  pen.clip();
  for (const each of series) {
    Object.assign(pen, { strokeStyle: ink.stage(each.colour), lineWidth: each.thin ? 1.25 : 2 });
    pen.setLineDash(DASHES[each.dash] ?? []);
    pen.beginPath();
    for (let i = 0; i < each.x.length; i++)
      if (!yLog || each.y[i] > 0) pen.lineTo(px(each.x[i]), py(each.y[i]));
    pen.stroke();
    pen.setLineDash([]);
    for (const i of each.marks ?? []) {
      pen.beginPath();
      pen.arc(px(each.x[i]), py(each.y[i]), 4, 0, 7);
      pen.stroke();
    }
  }
  pen.restore();
  const at = ({ offsetX }) => {
    if (offsetX < LEFT) return null;
    const part = x0 + ((offsetX - LEFT) / (width - LEFT - RIGHT)) * (x1 - x0),
      wanted = xLog ? 10 ** part : part;
    const near = (xs) => {
      let best = 0;
      for (let i = 1; i < xs.length; i++)
        if (Math.abs(xs[i] - wanted) < Math.abs(xs[best] - wanted)) best = i;
      return best;
    };
    return {
      words: own
        .map((each) => {
          const i = near(each.x);
          return `${each.label} ${each.names ? `channel ${each.names[i]}: ` : `at ${number(each.x[i])}: `}${number(each.y[i], 4)}`;
        })
        .join(" · "),
    };
  };
  return { at, scale: "" };
}
