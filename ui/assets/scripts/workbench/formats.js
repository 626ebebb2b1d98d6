/* Formats of layers, spelled and priced as `backend/sensitivity/profile.py` does, and addresses of states as
   `backend/live/address.py` writes them. */
import { plasma } from "../weights/canvas.js";

/** @typedef {{text: string, pattern: string, keep: number, of: number, drop: number, width: string, bits: number, group: number}} Format
    `keep` of every `of` inputs, 0 where a share is dropped; `bits` 16 without a width; `group` 0: a scale for each row. */

export const DENSE = "dense";
const SPELLED = /^(?:(\d{1,3}):(\d{1,3})|(\d{1,2}(?:\.\d+)?)%)?(?:\+?int([2-8])(?:-g(\d{1,5}))?)?$/;
const SIGNS = [
  ["%", "p"],
  [":", "of"],
  ["+", "and"],
];
const SCALE_BITS = 16,
  known = new Map([[DENSE, read("")]]);

function read(text) {
  const found = SPELLED.exec(text);
  if (!found) throw new Error(`${text.slice(0, 40)} is no format.`);
  const [, keep = 0, of = 0, percent = 0, bits, group = 0] = found,
    drop = percent ? percent / 100 : of ? 1 - keep / of : 0;
  const [pattern, width = ""] = text.includes("int")
    ? [text.replace(/\+?int.*/, ""), text.slice(text.indexOf("int"))]
    : [text];
  return Object.freeze({
    text: text || DENSE,
    pattern,
    keep: +keep,
    of: +of,
    drop,
    width,
    bits: +(bits ?? 16),
    group: +group,
  });
}

/** The format that a text spells. @returns {Format} */
export function format(text) {
  if (!known.has(text)) known.set(text, read(text));
  return known.get(text);
}

/** A format of a pattern, a width, or both; "" for none. */
export const combined = (pattern, width) => [pattern, width].filter(Boolean).join("+") || DENSE;

export function fits({ group, of }, columns) {
  return (!group || columns % group === 0) && (!of || columns % of === 0);
}

/** In words: "2:4, 4 bits in groups of 64", or in short without the groups. */
export function label({ pattern, width, bits, group }, short = false) {
  const words = [
    pattern.replace("%", "\u00a0%"),
    width && `${bits} bits${group && !short ? ` in groups of ${group}` : ""}`,
  ];
  return words.filter(Boolean).join(", ") || "16 bits";
}

/** Bits a weight of a row of `columns` inputs takes, with scales, indices and masks. */
export function bitsPerWeight({ pattern, drop, of, width, bits, group }, columns) {
  const scales = width ? SCALE_BITS / (group || columns) : 0;
  return pattern
    ? (1 - drop) * (bits + (of ? Math.ceil(Math.log2(of)) : 0)) + (of ? 0 : 1) + scales
    : bits + scales;
}

/** On one ordered scale, as `ui/charts/formats.py`: the less is left, the brighter; dense has none. */
export function colour({ pattern, drop, width, bits }) {
  if (!pattern && !width) return null;
  const left = width ? (Math.log2(bits * (1 - drop)) - 1) / 2 : (0.8 - drop) / 0.5;
  return plasma(0.92 - 0.72 * Math.max(-0.1, Math.min(1.2, left)));
}

/** @typedef {{identity: string, pruner: string, quantizer: string, formats: string[]}} State */

export function addressOf({ identity, pruner, quantizer, formats }) {
  const used = [...new Set(formats)],
    runs = [];
  formats.forEach((text, i) => {
    if (i && formats[i - 1] === text) runs.at(-1)[1]++;
    else runs.push([used.indexOf(text), 1]);
  });
  const spelled = SIGNS.reduce(
    (text, [sign, letters]) => text.replaceAll(sign, letters),
    used.join("_"),
  );
  return [
    identity,
    pruner,
    quantizer,
    spelled,
    runs.map(([at, many]) => (many > 1 ? `${at}x${many}` : at)).join("_"),
  ].join("~");
}

/** The state at an address of a model with so many layers; throws an Error that says why there is none.
    @returns {State} */
export function stateAt(address, layers) {
  const parts = address.split("~");
  if (parts.length !== 5) throw new Error("It is no address of a state.");
  const [identity, pruner, quantizer, spelled, runs] = parts;
  const used = spelled
    .split("_")
    .map(
      (text) =>
        format(
          SIGNS.reduce((t, [sign, letters]) => t.replaceAll(letters, sign), text).replace(
            /^dense$/,
            DENSE,
          ),
        ).text,
    );
  const formats = runs.split("_").flatMap((run) => {
    const [, at, many = 1] = /^(\d{1,4})(?:x(\d{1,6}))?$/.exec(run) ?? [];
    return at in used && many <= layers ? Array(+many).fill(used[at]) : [null];
  });
  if (formats.length !== layers || formats.includes(null))
    throw new Error("Its layers are not those of this model.");
  return { identity, pruner, quantizer, formats };
}
