/* Drawing: canvases in the pixels of the screen, colours of the mode, numbers in words. */

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const INKS = { "#5B6472": "muted", "#0072B2": "blue" }; // of stages, lighter in the dark mode
const VIRIDIS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 74, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [110, 206, 88],
  [181, 222, 43],
  [253, 231, 37],
];
const PLASMA = [
  [13, 8, 135],
  [70, 3, 159],
  [114, 1, 168],
  [156, 23, 158],
  [189, 55, 134],
  [216, 87, 107],
  [237, 121, 83],
  [251, 159, 58],
  [253, 202, 38],
  [240, 249, 33],
];
const COLD = [0, 114, 178],
  WARM = [213, 94, 0];

/** The colour of a stage in HTML, which follows the mode by itself. */
export const stageInk = (hex) => (INKS[hex] ? `var(--${INKS[hex]})` : hex);

/* Looking at styles and widths makes the browser lay out the page anew, which takes longer than to draw. */
let known = { mode: null, widths: new WeakMap() };

/** Looks again where the page has another size. */
export function measureAgain() {
  known = { mode: null, widths: new WeakMap() };
}

/** Colours of the page by name, `stage(hex)`, that of a stage in this mode, and the size of its type. */
export function inks() {
  const mode = document.body.className;
  if (known.mode === mode) return known.inks;
  const css = getComputedStyle(document.body),
    ink = (name) => css.getPropertyValue(`--${name}`).trim();
  const named = Object.fromEntries(
    ["text", "muted", "line", "paper", "panel", "accent", "blue"].map((name) => [name, ink(name)]),
  );
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize);
  Object.assign(known, {
    mode,
    inks: { ...named, size, stage: (hex) => (INKS[hex] ? named[INKS[hex]] : hex) },
  });
  return known.inks;
}

/** Pixels of a margin that grows with the type. */
export const em = (many) => many * inks().size;

/** The width of the place of a canvas. */
export function widthOf(canvas) {
  if (!known.widths.has(canvas)) {
    const width = canvas.parentElement.clientWidth;
    if (!width) return 600; // not shown
    known.widths.set(canvas, width);
  }
  return known.widths.get(canvas);
}

/** The drawing context of a canvas as wide as its place, cleared. */
export function surface(canvas, height) {
  const width = widthOf(canvas),
    ratio = devicePixelRatio || 1,
    { size } = inks();
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `${Math.round(0.75 * size)}px "IBM Plex Sans", system-ui, sans-serif`;
  return { pen, width, height, line: Math.round(size) };
}

const mix = (a, b, part) => a.map((value, i) => value + (b[i] - value) * part);
const rgb = (parts) => `rgb(${parts.map(Math.round).join(",")})`;

function between(scale, part) {
  const at = Math.max(0, Math.min(1, part)) * (scale.length - 1),
    i = Math.min(at | 0, scale.length - 2);
  return rgb(mix(scale[i], scale[i + 1], at - i));
}

/** A colour of the sequential scale, from 0 to 1; one of the scale of formats. */
export const sequential = (part) => between(VIRIDIS, part);
export const plasma = (part) => between(PLASMA, part);

/** A colour of the diverging scale, from -1 over `middle` at 0 to 1. */
export const diverging = (part, middle) =>
  rgb(mix(middle, part < 0 ? COLD : WARM, Math.min(1, Math.abs(part))));

/** Round numbers from low to high, about so many. */
export function ticks(low, high, many = 5) {
  const raw = (high - low) / many || 1,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= raw * 0.999);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high * (1 + 1e-9) + 1e-12; tick += step)
    found.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return found;
}

/** Significant digits, with a real minus; a dash where there is no number. */
export function number(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text =
    size && (size < 1e-4 || size >= 1e7)
      ? value.toExponential(digits - 1)
      : size >= 10 ** digits
        ? Math.round(value).toLocaleString("en")
        : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}
export const share = (value, places = 1) =>
  Number.isFinite(value) ? `${(100 * value).toFixed(places)}\u00a0%` : "–";
export const times = (value, digits = 3) =>
  Number.isFinite(value) ? `${number(value, digits)}\u00a0×` : "–";
export const lower = (label) =>
  /^[A-Z]{2}/.test(label) ? label : label[0].toLowerCase() + label.slice(1);

/** Calls `paint` with 0 to 1 in 200 ms, or once with 1 for people who asked for less motion; returns what
    stops it. The first frame is painted at once. */
export function tween(paint, ms = 200) {
  let frame = 0;
  const begin = performance.now();
  const step = (now) => {
    const part = still() ? 1 : Math.min(1, Math.max(0, (now - begin) / ms));
    paint(part);
    if (part < 1) frame = requestAnimationFrame(step);
  };
  step(begin);
  return () => cancelAnimationFrame(frame);
}

export const DASHES = { dash: [6, 4], dot: [2, 3], dashdot: [6, 3, 2, 3] };

/** A straight line from one place to another. */
export function stroke(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

/** Small labels of an axis below a plot, whose middle of the tick is at `x(tick)`. */
export function bottomAxis({ pen, height, line }, ink, marks, x, title) {
  pen.fillStyle = ink.muted;
  pen.textBaseline = "alphabetic";
  pen.textAlign = "center";
  for (const tick of marks) pen.fillText(number(tick), x(tick), height - line - 4);
  pen.fillText(title, x.middle, height - 4);
}

/** The canvas on paper, below a title and above a caption, as a PNG for `saved(blob)`. */
export function picture(canvas, title, caption, saved) {
  const copy = document.createElement("canvas"),
    ink = inks(),
    unit = canvas.width / canvas.clientWidth || 1;
  Object.assign(copy, { width: canvas.width + 32 * unit, height: canvas.height + 80 * unit });
  const pen = copy.getContext("2d");
  pen.fillStyle = ink.paper;
  pen.fillRect(0, 0, copy.width, copy.height);
  pen.fillStyle = ink.text;
  pen.font = `600 ${16 * unit}px "IBM Plex Sans", sans-serif`;
  pen.fillText(title, 16 * unit, 28 * unit, canvas.width);
  pen.drawImage(canvas, 16 * unit, 44 * unit);
  pen.fillStyle = ink.muted;
  pen.font = `${12 * unit}px "IBM Plex Sans", sans-serif`;
  pen.fillText(caption, 16 * unit, copy.height - 14 * unit, canvas.width);
  copy.toBlob(saved);
}
