/* State of the page, shown by all panels. The address contains the values that differ from their defaults. */
import { VIEWS } from "./views.js";
/** @import {Histograms} from "./histograms.js" */
/** @import {Range} from "./canvas.js" */

/** `vs`: a stage, or another run; `brush`: "0.01~0.03", a range of magnitudes; `show`: stages of the histogram, with
    commas; `spot`: "OUTPUT,INPUT"; `step`: of training; `group`: number among the worst. */
const OPTIONS = {
  vs: "",
  view: "ridges",
  brush: "",
  show: "",
  y: "linear",
  side: "row",
  measure: "norm",
  order: "size",
  cells: "mean",
  spot: "",
  step: "",
  group: "",
};
/** @typedef {"run" | "stage" | "tensor" | "stat" | keyof typeof OPTIONS} Field */
/** @typedef {Record<Field, string>} State */

/** @type {Partial<State>} */
const DEFAULTS = OPTIONS;
const FIELDS = /** @type {Field[]} */ (["run", "stage", "tensor", "stat", ...Object.keys(OPTIONS)]);
const DRAWN_HERE = ["ridges", "groups"]; // views that `VIEWS` lacks
/** State of an address. @param {string} search */
export function asked(search) {
  const query = new URLSearchParams(search);
  const state = /** @type {State} */ (
    Object.fromEntries(FIELDS.map((name) => [name, query.get(name) ?? DEFAULTS[name] ?? ""]))
  );
  if (!Object.hasOwn(VIEWS, state.view) && !DRAWN_HERE.includes(state.view))
    state.view = OPTIONS.view;
  return state;
}

/** Names of the stages in the histogram. @param {State} state */
export const chosenStages = ({ show }) => show.split(",").filter(Boolean);

export class Selection {
  /** @type {Partial<State>} */
  defaults = {};

  /** @param {State} state @param {(changed: Set<string>) => void} changed called with the names of changed fields */
  constructor(state, changed) {
    this.now = state;
    this.changed = changed;
  }

  /** Takes the defaults of a run, also in place of what the run does not have. @param {Histograms} data
      @returns {string} sentences on what the address asks for and the run lacks */
  settle(data) {
    const { now } = this;
    this.defaults = { ...OPTIONS, ...data.defaults };
    now.run = data.run;
    const lacking = [
      now.stage && data.stage(now.stage) < 0 ? `no stage ${now.stage.slice(0, 60)}` : "",
      now.tensor && data.tensor(now.tensor) < 0 ? `no tensor ${now.tensor.slice(0, 90)}` : "",
    ].filter(Boolean);
    if (data.stage(now.stage) < 0) now.stage = data.defaults.stage;
    if (data.tensor(now.tensor) < 0) now.tensor = data.defaults.tensor;
    if (!data.statistics.some(({ name }) => name === now.stat)) now.stat = data.defaults.stat;
    if (now.vs === now.run) now.vs = "";
    const stages = chosenStages(now).filter((name) => data.stage(name) >= 0);
    now.show = stages.join(",");
    if (!range(now.brush)) now.brush = "";
    if (!/^\d{1,9}$/.test(now.step)) now.step = "";
    if (!/^\d{1,3}$/.test(now.group)) now.group = "";
    const { label } = data.tensors[data.tensor(now.tensor)];
    return lacking.length
      ? `${data.run} has ${lacking.join(" and ")}. This is ${label}; choose another above.`
      : "";
  }

  /** @param {Partial<State>} parts */
  set(parts) {
    const names = /** @type {Field[]} */ (Object.keys(parts));
    const changed = names.filter((name) => parts[name] !== this.now[name]);
    if (!changed.length) return;
    Object.assign(this.now, parts);
    this.changed(new Set(changed));
    this.write("brush" in parts || "spot" in parts);
  }

  /** Writes the address. @param {boolean} [moving] it changes under the pointer */
  write(moving = false) {
    const fields = FIELDS.map((name) => {
      const isDefault = name !== "run" && this.now[name] === this.defaults[name];
      return [name, isDefault ? "" : this.now[name]];
    });
    window.slimscope.address(Object.fromEntries(fields), moving);
  }
}

/** The two magnitudes of a brush; null if it is invalid. @param {string} brush @returns {Range | null} */
export function range(brush) {
  const [low, high] = brush.split("~").map(Number);
  return brush && low >= 0 && high > low ? [low, high] : null;
}
