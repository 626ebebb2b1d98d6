/* Formats of layers, put together from the patterns and widths that the server describes, and the address of a state,
   which the server alone reads (`backend/live/address.py`). */

/** @typedef {{label: string, short: string, keep: number, of: number, drop: number, bits: number, group: number,
      extra: number, level: number, beside: number, misfits: number[]}} Part
    A pattern or a width. `keep` of every `of` inputs, 0 where a share is dropped; `bits` 16 without a width; `group` 0:
    a scale for each row; `extra`: bits of masks, indices and scales that a weight takes in rows of one input; `misfits`:
    numbers of inputs that cannot be stored so; `level`: place on the scale of colors, `beside` what a pattern adds to
    that of a width. */
/** @typedef {Record<string, Part>} Parts */
/** @typedef {[pattern: string, width: string]} Names "" for none. */
/** @typedef {{text: string, pattern: string, width: string, keep: number, of: number, drop: number, bits: number,
      group: number, marks: number, scales: number, color: string | null, misfits: number[], label: string,
      short: string, alone: Format[]}} Format
    `color`: null of dense; `alone`: its pattern and its width, where it has both. */
/** @typedef {{identity: string, pruner: string, quantizer: string, formats: Format[]}} State */
/** @typedef {"pruner" | "quantizer"} Method */

const SIGNS = [
  ["%", "p"],
  [":", "of"],
  ["+", "and"],
];
const DENSE = "dense";

/** Formats of a model; equal names give the same object. */
export class Formats {
  /** @type {Map<string, Part>} */
  #parts = new Map();
  /** @type {Map<string, Format>} */
  #made = new Map();

  /** @param {Parts} parts @param {string[]} scale colors */
  constructor(parts, scale) {
    this.scale = scale;
    this.add(parts);
    this.dense = this.of("", "");
  }

  /** @param {Parts} parts */
  add(parts) {
    for (const [name, part] of Object.entries(parts)) this.#parts.set(name, part);
  }

  /** The format of a pattern and a width. @param {string} pattern @param {string} width @returns {Format} */
  of(pattern, width) {
    const text = [pattern, width].filter(Boolean).join("+") || DENSE;
    const found = this.#made.get(text) ?? this.#make(text, pattern, width);
    this.#made.set(text, found);
    return found;
  }

  /** @param {Names[]} names */
  all(names) {
    return names.map(([pattern, width]) => this.of(pattern, width));
  }

  /** @param {string} text @param {string} pattern @param {string} width @returns {Format} */
  #make(text, pattern, width) {
    const [first, second] = [pattern, width].map((name) => this.#part(name || DENSE));
    const used = [pattern ? first : null, width ? second : null].filter((part) => part !== null);
    const words = used.length ? used : [first];
    const level = width ? second.level + first.beside : first.level;
    const place = Math.round(Math.max(0, Math.min(this.scale.length - 1, level)));
    return Object.freeze({
      text,
      pattern,
      width,
      keep: first.keep,
      of: first.of,
      drop: first.drop,
      bits: second.bits,
      group: second.group,
      marks: first.extra,
      scales: second.extra,
      color: used.length ? this.scale[place] : null,
      misfits: [...first.misfits, ...second.misfits],
      label: words.map((part) => part.label).join(", "),
      short: words.map((part) => part.short).join(", "),
      alone: used.length > 1 ? [this.of(pattern, ""), this.of("", width)] : [],
    });
  }

  /** @param {string} name */
  #part(name) {
    const found = this.#parts.get(name);
    if (!found) throw new Error(`The server has not described ${name}.`);
    return found;
  }

  /** Name of the width with these bits and group size; "" if there is none. @param {number} bits @param {number} group */
  width(bits, group) {
    for (const [name, part] of this.#parts)
      if (part.bits === bits && part.group === group) return name;
    return "";
  }
}

/** @param {Format} form @param {number} columns */
export const fits = ({ misfits }, columns) => !misfits.includes(columns);

/** Bits per weight in a row of `columns` inputs. @param {Format} form @param {number} columns */
export const bitsPerWeight = ({ drop, bits, group, marks, scales }, columns) =>
  (1 - drop) * bits + marks + (group ? scales : scales / columns);

/** The address of a state. @param {State} state */
export function addressOf({ identity, pruner, quantizer, formats }) {
  const used = [...new Set(formats)];
  /** @type {{at: number, many: number}[]} */
  const runs = [];
  formats.forEach((form, i) => {
    const last = runs.at(-1);
    if (last && formats[i - 1] === form) last.many++;
    else runs.push({ at: used.indexOf(form), many: 1 });
  });
  const spelled = SIGNS.reduce(
    (text, [sign, letters]) => text.replaceAll(sign, letters),
    used.map(({ text }) => text).join("_"),
  );
  const layers = runs.map(({ at, many }) => (many > 1 ? `${at}x${many}` : at)).join("_");
  return [identity, pruner, quantizer, spelled, layers].join("~");
}
