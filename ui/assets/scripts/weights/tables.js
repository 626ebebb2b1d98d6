/* Tables of figures, and their files. */
import { number } from "./canvas.js";
/** @import {Choice, Histograms} from "./histograms.js" */

/** @typedef {string | number} Cell */
/** @typedef {[heads: string[], rows: Cell[][]]} Figures */

const { create, saveTable } = window.slimscope;

/** File name for a text. @param {string} text */
export const fileName = (text) => text.replace(/[^\w.-]+/g, "-");

/** @param {Cell} value @param {boolean} isHead @param {boolean} isFirst */
function tableCell(value, isHead, isFirst) {
  const cell = create(isHead || isFirst ? "th" : "td", {
    textContent: typeof value === "number" ? number(value, 4) : value,
    className: isFirst ? "" : "num",
  });
  if (cell.tagName === "TH") cell.setAttribute("scope", isHead ? "col" : "row");
  if (Number.isFinite(value)) cell.dataset.value = String(value);
  return cell;
}

/** @param {Figures} figures */
function htmlTable([heads, rows]) {
  const table = create("table", { className: "data" });
  const head = table.createTHead().insertRow();
  head.append(...heads.map((value, i) => tableCell(value, true, i === 0)));
  const body = table.createTBody();
  for (const row of rows)
    body.insertRow().append(...row.map((value, i) => tableCell(value, false, i === 0)));
  return table;
}

/** A table with the button that saves it, as the macro `data_table` makes it. @param {Figures} figures
    @param {string} name */
export function table(figures, name) {
  const box = create("div");
  const scroll = create("div", {
    className: "scroll",
    tabIndex: 0,
    role: "region",
    ariaLabel: name,
  });
  const button = create("button", {
    type: "button",
    className: "small-button",
    textContent: "Download CSV",
  });
  button.onclick = () => saveFigures(figures, name);
  scroll.append(htmlTable(figures));
  box.append(scroll, button);
  return box;
}

/** Saves figures as CSV. @type {(figures: Figures, name: string) => void} */
export const saveFigures = (figures, name) => saveTable(htmlTable(figures), fileName(name));

/** Saves every statistic of every tensor at every stage as one CSV. @param {Histograms} data */
export function saveAll(data) {
  const names = data.statistics.map(({ name }) => name);
  const heads = ["tensor", "block", "module", "stage", "n", "zeros", "below", "above", ...names];
  const rows = data.tensors.flatMap(({ name, block, module }, t) =>
    data.stages.flatMap((stage, s) => {
      const { n, zeros, below, above } = data.tail(t, s);
      const values = names.map((statistic) => data.value(statistic, t, s));
      if (!n) return [];
      return [[name, String(block), module, stage.name, n, zeros, below, above, ...values]];
    }),
  );
  saveFigures([heads, rows], `${data.run}-statistics`);
}

/** Fills a list; it is left alone where the choices are the same, as it may be open. @param {HTMLSelectElement} select
    @param {Choice[]} choices @param {string} value */
export function offer(select, choices, value) {
  const key = JSON.stringify(choices);
  if (select.dataset.offered !== key)
    select.replaceChildren(...choices.map(([label, each]) => new Option(label, each)));
  select.dataset.offered = key;
  select.value = value;
}
