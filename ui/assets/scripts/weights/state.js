/* What is looked at: one state that drives every panel and the address, which holds only what differs
   from the default. */

/** @typedef {{run: string, vs: string, stage: string, tensor: string, view: string, brush: string, stat: string,
    against: string, show: string, curve: string, y: string, side: string, measure: string, order: string, cells: string,
    flow: string, spot: string}} State
    `brush`: "0.01~0.03", the magnitudes that are looked for; `show`: stages of the histogram, with commas. */

const OPTIONS = {
  vs: "",
  view: "ridges",
  brush: "",
  against: "",
  show: "",
  curve: "histogram",
  y: "linear",
  side: "row",
  measure: "norm",
  order: "size",
  cells: "mean",
  flow: "inputs",
  spot: "",
};
const NAMES = ["run", "stage", "tensor", "stat", ...Object.keys(OPTIONS)];
const DRAWN = [
  "ridges",
  "magnitudes",
  "matrix",
  "joint",
  "channels",
  "spectrum",
  "inputs",
  "statistics",
];

/** What an address asks for. @returns {State} */
export function asked(search) {
  const query = new URLSearchParams(search);
  const state = Object.fromEntries(
    NAMES.map((name) => [name, query.get(name) ?? OPTIONS[name] ?? ""]),
  );
  if (!DRAWN.includes(state.view)) state.view = OPTIONS.view;
  return state;
}

export class Selection {
  #told = [];
  /** @param {State} state */
  constructor(state) {
    this.now = state;
    this.defaults = {};
  }

  /** Takes the defaults of a run, and them where the state asks for what the run does not have. */
  settle(data) {
    const { now } = this,
      known = { stage: data.stages, tensor: data.tensors, stat: data.statistics };
    this.defaults = { ...OPTIONS, ...data.defaults };
    now.run = data.run;
    for (const [name, items] of Object.entries(known))
      if (!items.some((each) => each.name === now[name])) now[name] = this.defaults[name];
    if (now.vs === now.run || (now.against === "run" && !now.vs)) now.against = "";
    if (now.vs === now.run) now.vs = "";
    now.show = now.show
      .split(",")
      .filter((name) => data.stage(name) >= 0)
      .join(",");
    if (!range(now.brush)) now.brush = "";
  }

  /** @param {(changed: Set<string>) => void} listener */
  listen(listener) {
    this.#told.push(listener);
  }

  /** @param {Partial<State>} parts */
  set(parts) {
    const changed = new Set(Object.keys(parts).filter((name) => parts[name] !== this.now[name]));
    if (!changed.size) return;
    Object.assign(this.now, parts);
    for (const listener of this.#told) listener(changed);
    this.write("brush" in parts || "spot" in parts);
  }

  /** `moving`: it changes under the hand. */
  write(moving = false) {
    const short = NAMES.map((name) => [
      name,
      name !== "run" && this.now[name] === this.defaults[name] ? "" : this.now[name],
    ]);
    window.slimscope.address(Object.fromEntries(short), moving);
  }
}

/** The two magnitudes of a brush; null where it is none. */
export function range(brush) {
  const [low, high] = brush.split("~").map(Number);
  return brush && low >= 0 && high > low ? [low, high] : null;
}
