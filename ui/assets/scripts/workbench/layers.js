/* The table of all layers: their formats in this state, and what the profile knows of each format. */
import { table } from "../weights/tables.js";
import { bitsPerWeight } from "./formats.js";

/** @typedef {import("../weights/tables.js").Figures} Figures */

/** One row per layer, the largest loss first. @param {import("./view.js").View} view @returns {Figures} */
function figures({ layers, formats, predictions }) {
  const profiled = predictions.formats;
  const losses = profiled.map(({ text }) => `Loss at ${text}, nats`);
  const errors = profiled.map(({ text }) => `Output error at ${text}, %`);
  const heads = ["Layer", "Block", "Matrix", "Weights", "Format", "Bits a weight", "MB"];
  const rows = layers.map(({ name, block, module, rows: height, columns }, i) => {
    const form = formats[i];
    const at = (/** @type {import("./formats.js").Format} */ each) =>
      predictions.figure("predicted", i, each);
    const error = (/** @type {import("./formats.js").Format} */ each) =>
      100 * predictions.figure("error", i, each);
    /** @type {(string | number)[]} */
    const state = [name, block < 0 ? "" : block, module, height * columns, form.text];
    const sizes = [bitsPerWeight(form, columns), predictions.nbytes(i, form) / 1e6];
    return {
      loss: at(form) || 0,
      row: [...state, ...sizes, at(form), error(form), ...profiled.map(at), ...profiled.map(error)],
    };
  });
  rows.sort((a, b) => b.loss - a.loss);
  const now = ["Loss, nats a token", "Output error, %"];
  return [[...heads, ...now, ...losses, ...errors], rows.map(({ row }) => row)];
}

/** Opens the table, with a button for CSV. @param {import("./view.js").View} view */
export function showTable(view) {
  const dialog = window.slimscope.dialog("workbench-table", "");
  const close = window.slimscope.create("button", {
    type: "button",
    className: "small-button",
    textContent: "Close",
  });
  close.onclick = () => dialog.close();
  dialog.onclose = () => dialog.remove();
  dialog.append(close, table(figures(view), `${view.model.model}-layers`));
  dialog.showModal();
}
