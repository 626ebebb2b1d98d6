/* Drawing utilities: canvases in device pixels, colors of the current mode, formatted numbers. */

/** @typedef {{text: string, muted: string, line: string, paper: string, panel: string, accent: string, blue: string,
    size: number, stage: (hex: string) => string}} Inks Colors of the page; `size`: font size in pixels; `stage`: the
    color of a stage in the current mode. */
/** @typedef {{pen: CanvasRenderingContext2D, width: number, height: number, line: number}} Surface `line`: height of a
    line of text. */
/** @typedef {((value: number) => number) & {middle: number}} AxisScale Pixels of a value; `middle`: of the axis. */
/** @typedef {[red: number, green: number, blue: number]} Color */
/** @typedef {[from: number, to: number]} Range */

export const { still } = window.slimscope;

/** Colors of stages that are lighter in the dark mode. @type {Record<string, "muted" | "blue">} */
const INKS = { "#5B6472": "muted", "#0072B2": "blue" };
const NAMED = /** @type {const} */ (["text", "muted", "line", "paper", "panel", "accent", "blue"]);
const HIDDEN_WIDTH = 600;
/** Colors from their hexadecimal digits. @param {string} digits */
const colors = (digits) =>
  digits
    .split(" ")
    .map((color) => /** @type {Color} */ (color.match(/../g)?.map((part) => parseInt(part, 16))));
const VIRIDIS = colors("440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725");
/** @type {Color} */
const COLD = [0, 114, 178];
/** @type {Color} */
const WARM = [213, 94, 0];

/** Color of a stage for HTML, which adapts to the color mode. @param {string} hex */
export const stageInk = (hex) => (INKS[hex] ? `var(--${INKS[hex]})` : hex);

/* Reading styles and widths forces a layout of the page, which takes longer than drawing. */
/** @type {{mode: string, inks: Inks} | null} */
let inkCache = null;
/** @type {WeakMap<HTMLCanvasElement, number>} */
let widthCache = new WeakMap();

/** Clears cached styles and widths; called when the page is resized. */
export function measureAgain() {
  inkCache = null;
  widthCache = new WeakMap();
}

/** @returns {Inks} */
export function inks() {
  const mode = document.body.className;
  if (inkCache?.mode === mode) return inkCache.inks;
  const css = getComputedStyle(document.body);
  const colors = /** @type {Record<typeof NAMED[number], string>} */ (
    Object.fromEntries(NAMED.map((name) => [name, css.getPropertyValue(`--${name}`).trim()]))
  );
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize);
  /** @type {Inks["stage"]} */
  const stage = (hex) => (INKS[hex] ? colors[INKS[hex]] : hex);
  inkCache = { mode, inks: { ...colors, size, stage } };
  return inkCache.inks;
}

/** Pixels of a length given in font-size units. @param {number} length */
export const em = (length) => length * inks().size;

/** Width of a canvas: that of its parent. @param {HTMLCanvasElement} canvas */
export function widthOf(canvas) {
  const cached = widthCache.get(canvas);
  if (cached) return cached;
  const width = canvas.parentElement?.clientWidth;
  if (!width) return HIDDEN_WIDTH;
  widthCache.set(canvas, width);
  return width;
}

/** The drawing context of a canvas. @param {HTMLCanvasElement} canvas */
function contextOf(canvas) {
  const context = canvas.getContext("2d");
  if (!context) throw new Error("This browser cannot draw on a canvas.");
  return context;
}

/** A canvas as wide as its parent, cleared. @param {HTMLCanvasElement} canvas @param {number} height @returns {Surface}
 */
export function surface(canvas, height) {
  const width = widthOf(canvas);
  const ratio = devicePixelRatio || 1;
  const { size } = inks();
  const pixels = { width: Math.round(width * ratio), height: Math.round(height * ratio) };
  if (canvas.width !== pixels.width || canvas.height !== pixels.height) {
    Object.assign(canvas, pixels);
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  }
  const pen = contextOf(canvas);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `${Math.round(0.75 * size)}px "IBM Plex Sans", system-ui, sans-serif`;
  return { pen, width, height, line: Math.round(size) };
}

/** @param {Color} from @param {Color} to @param {number} part */
function mix(from, to, part) {
  const channels = from.map((value, i) => Math.round(value + (to[i] - value) * part));
  return `rgb(${channels.join(",")})`;
}

/** @param {Color[]} scale @param {number} part */
function between(scale, part) {
  const at = Math.max(0, Math.min(1, part)) * (scale.length - 1);
  const i = Math.min(Math.floor(at), scale.length - 2) || 0;
  return mix(scale[i], scale[i + 1], at - i);
}

/** A color of the sequential scale. @param {number} part from 0 to 1 */
export const sequential = (part) => between(VIRIDIS, part);

/** A color of the diverging scale. @param {number} part from -1 to 1 @param {Color} middle color of 0 */
export const diverging = (part, middle) =>
  mix(middle, part < 0 ? COLD : WARM, Math.min(1, Math.abs(part)));

/** The channels of a color, which a canvas writes in six hexadecimal digits. @param {CanvasRenderingContext2D} pen
    @param {string} [color] instead of that it fills with @returns {Color} */
export function channels(pen, color) {
  if (color) pen.fillStyle = color;
  const [red, green, blue] = String(pen.fillStyle).match(/\w\w/g) ?? ["0", "0", "0"];
  return [parseInt(red, 16), parseInt(green, 16), parseInt(blue, 16)];
}

/** About `count` round numbers from low to high. @param {number} low @param {number} high @param {number} [count] */
export function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= raw * 0.999) ?? 10);
  const marks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high * (1 + 1e-9) + 1e-12; tick += step)
    marks.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return marks;
}

/** Significant digits, with a real minus; a dash where there is no number. @param {number | null | undefined} value
    @param {number} [digits] */
export function number(value, digits = 3) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  let text = String(Number(value.toPrecision(digits)));
  if (size && (size < 1e-4 || size >= 1e7)) text = value.toExponential(digits - 1);
  else if (size >= 10 ** digits) text = Math.round(value).toLocaleString("en");
  return text.replace("-", "−");
}

/** A share in percent. @type {(value: number, places?: number) => string} */
export const share = (value, places = 1) =>
  Number.isFinite(value) ? `${(100 * value).toFixed(places)}\u00a0%` : "–";

/** A factor. @type {(value: number, digits?: number) => string} */
export const times = (value, digits = 3) =>
  Number.isFinite(value) ? `${number(value, digits)}\u00a0×` : "–";

/** A label inside a sentence. @param {string} label */
export const lower = (label) =>
  /^[A-Z]{2}/.test(label) ? label : label[0].toLowerCase() + label.slice(1);

/** Calls `paint` with 0 to 1, the first time at once, or once with 1 for people who asked for less motion.
    @param {(part: number) => void} paint @param {number} [ms] @returns {() => void} stops it */
export function tween(paint, ms = 200) {
  let frame = 0;
  const begin = performance.now();
  /** @param {number} now */
  const step = (now) => {
    const part = still() ? 1 : Math.min(1, Math.max(0, (now - begin) / ms));
    paint(part);
    if (part < 1) frame = requestAnimationFrame(step);
  };
  step(begin);
  return () => cancelAnimationFrame(frame);
}

/** The pixels of values on an axis. @type {(ends: Range, left: number, right: number) => AxisScale} */
export function axisScale([low, high], left, right) {
  const pixels = (/** @type {number} */ value) =>
    left + ((value - low) / (high - low)) * (right - left);
  return Object.assign(pixels, { middle: (left + right) / 2 });
}

/** Dashes of lines by their name in Plotly. @type {Record<string, number[]>} */
export const DASHES = { dash: [6, 4], dot: [2, 3], dashdot: [6, 3, 2, 3] };

/** A straight line. @param {CanvasRenderingContext2D} pen @param {number} x0 @param {number} y0 @param {number} x1
    @param {number} y1 */
export function stroke(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

/** Numbers and title of the axis below a plot. @param {Surface} surface @param {Inks} ink @param {number[]} marks
    @param {AxisScale} x @param {string} title */
export function bottomAxis({ pen, height, line }, ink, marks, x, title) {
  pen.fillStyle = ink.muted;
  pen.textBaseline = "alphabetic";
  pen.textAlign = "center";
  for (const tick of marks) pen.fillText(number(tick), x(tick), height - line - 4);
  pen.fillText(title, x.middle, height - 4);
}

/** A canvas on paper, below a title and above a caption, as a PNG. @param {HTMLCanvasElement} canvas
    @param {string} title @param {string} caption @param {(png: Blob) => void} saved */
export function picture(canvas, title, caption, saved) {
  const ink = inks();
  const unit = canvas.width / canvas.clientWidth || 1;
  const paper = window.slimscope.create("canvas", {
    width: canvas.width + 32 * unit,
    height: canvas.height + 80 * unit,
  });
  const pen = contextOf(paper);
  pen.fillStyle = ink.paper;
  pen.fillRect(0, 0, paper.width, paper.height);
  pen.fillStyle = ink.text;
  pen.font = `600 ${16 * unit}px "IBM Plex Sans", sans-serif`;
  pen.fillText(title, 16 * unit, 28 * unit, canvas.width);
  pen.drawImage(canvas, 16 * unit, 44 * unit);
  pen.fillStyle = ink.muted;
  pen.font = `${12 * unit}px "IBM Plex Sans", sans-serif`;
  pen.fillText(caption, 16 * unit, paper.height - 14 * unit, canvas.width);
  paper.toBlob((png) => png && saved(png));
}
