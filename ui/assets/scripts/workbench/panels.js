/* The panels of the Workbench: each draws the state that the page holds, and says in its title what it shows. */
import { number, share, times } from "../weights/canvas.js";
import { offer } from "../weights/tables.js";
import {
  DENSE,
  addressOf,
  bitsPerWeight,
  colour,
  combined,
  fits,
  format,
  label,
} from "./formats.js";
import { megabytes } from "./measured.js";
import { stages } from "./tensor.js";

const NONE = "#9AA4B2",
  COLUMNS = 4096,
  FEW = 3; // the colour of dense; inputs of the layer formats are ordered by; formats that are counted
const STEADY = ["hover", "measured", "tensor", "sparsity", "budget"]; // changes without motion

const plural = (many, word) => `${many.toLocaleString("en")} ${word}${many === 1 ? "" : "s"}`;
/** What was said of the state of a run, and what came out: "predicted 1.31, live 1.28, final 1.22 × dense"; or how far it is. */
const became = ({ predicted, live, final, at }) =>
  `${Object.entries({ predicted, live, final })
    .filter(([, ratio]) => ratio)
    .map(([how, ratio]) => `${how} ${number(ratio, 3)}`)
    .join(", ")} × dense${final ? "" : `, ${at}`}`;

/** Of `page.js`: `now` is the state, `chosen` and `pinned` are layers, `focus` the one that is looked at, `hovered` the one under the pointer. */
export class Panels {
  /** What is shown: the state, or dense while that is held. */
  get formats() {
    return this.holding ? this.dense : this.now.formats;
  }
  get address() {
    return addressOf(this.now);
  }
  /** By what the map is coloured: as somebody has chosen; else by format, and by what could be lost before anything is changed. */
  get colouring() {
    return this.colour || (this.isDense && this.predictions.run ? "sensitivity" : "format");
  }
  get isDense() {
    return this.now.formats.every((text) => text === DENSE);
  }

  scope(name) {
    const { block } = this.layers[this.focus],
      inside = (each) => each.block >= 0;
    const test =
      {
        all: inside,
        attention: (each) => inside(each) && /attn|attention/.test(each.module),
        mlp: (each) => inside(each) && !/attn|attention/.test(each.module),
        block: (each) => each.block === block,
        outside: (each) => !inside(each),
      }[name] ?? ((each) => each.module === name);
    return new Set(this.layers.flatMap((each, i) => (test(each) ? [i] : [])));
  }

  /** The name of a scope that is what is chosen; "" where it is none. */
  get scoped() {
    const same = (set) =>
      set.size === this.chosen.size && [...set].every((i) => this.chosen.has(i));
    return (
      ["all", "attention", "mlp", "block", "outside", ...this.model.modules].find((name) =>
        same(this.scope(name)),
      ) ?? ""
    );
  }

  /** What layers are pruned by at once; by Wanda's score what is computed block by block later, too. */
  get score() {
    return this.isInstant("pruner") ? "magnitude" : "wanda";
  }

  draw(why = "all") {
    const totals = this.predictions.totals(this.formats);
    if (why !== "measured" && why !== "tensor") this.#map();
    if (why !== "hover") {
      this.#knobs(totals);
      this.#histogram(why);
      const known = this.measured.of(addressOf({ ...this.now, formats: this.formats }));
      this.measured.gauges(totals, known, this);
      this.#front(totals, known);
    }
    this.#why();
  }

  height(id) {
    return Math.max(120, this.part(id).querySelector(".workbench-canvas").clientHeight);
  }

  #map() {
    const { data, predictions, formats, colouring: by } = this,
      shown = {
        data,
        picked: this.focus,
        height: this.height("map"),
        even: false,
        log: false,
        unit: "",
      };
    const reference = this.#reference();
    const figures = {
      predicted: [
        "Predicted loss, nats a token",
        (text, i) => predictions.figure("predicted", i, text),
      ],
      sensitivity: [
        `Loss of one layer at ${label(format(reference), true)}, nats a token`,
        (_, i) => predictions.figure("predicted", i, reference),
      ],
      error: ["Output error, %", (text, i) => 100 * predictions.figure("error", i, text)],
      bytes: ["MB", (text, i) => predictions.nbytes(i, text) / 1e6],
    };
    const counts = new Map(),
      bits = (text) => bitsPerWeight(format(text), COLUMNS),
      shade = (text) => colour(format(text)) ?? NONE;
    for (const text of formats.toSorted((a, b) => bits(b) - bits(a))) {
      const short = label(format(text), true),
        many = counts.get(short)?.many ?? 0;
      counts.set(short, { many: many + 1, colour: shade(text), words: short });
    }
    const [words, value] = figures[by] ?? ["", () => NaN],
      values = formats.map(value),
      chosen = this.chosen.size < this.scope("all").size ? this.chosen : null;
    const colours = by === "format" ? formats.map(shade) : null,
      key = [...counts.values()];
    const rows = data.modules.filter((module) =>
      this.layers.some(
        (each, i) => each.module === module && (Number.isFinite(values[i]) || i === this.focus),
      ),
    );
    this.map.draw({
      ...shown,
      data: by === "sensitivity" && rows.length ? { ...data, modules: rows } : data,
      values,
      label: words,
      log: by !== "bytes",
      colours,
      chosen,
      pinned: this.pinned,
      key: colours && key,
    });
    const worst = values.reduce(
      (best, each, i) => (Number.isFinite(each) && !(each <= values[best]) ? i : best),
      -1,
    );
    const title = colours
      ? key.length > FEW
        ? this.#spared(bits)
        : this.#kinds(key)
      : by === "sensitivity" && values[worst]
        ? `${format(reference).width ? "Rounding" : "Pruning"} only ${this.layers[worst].label.replace("Block", "block")}, to ${label(format(reference), true)} hurts most: ${number(values[worst], 2)} nats`
        : worst < 0 || !values[worst]
          ? `${words}: ${this.isDense ? "nothing is changed yet" : "not known"}`
          : `${words}: most in ${this.layers[worst].label.replace("Block", "block")}, ${number(values[worst])}`;
    this.element.querySelector('[data-knob="colour"]').value = by;
    this.part("map").querySelector("h2").textContent = title;
    this.part("map").querySelector("canvas").dataset.words = title;
    const t = this.hovered,
      place = this.part("map").querySelector("output");
    place.textContent =
      t < 0
        ? ""
        : `${this.layers[t].label}: ${label(format(formats[t]))}${colours ? "" : ` · ${number(values[t])}`}`;
  }

  /** Formats by the number of layers; what is outside of the blocks, last, where it alone is dense. */
  #kinds(key) {
    const outside = this.layers.flatMap(({ block }, i) => (block < 0 ? [this.formats[i]] : [])),
      dense = label(format(DENSE), true);
    const apart =
      key.length > 1 &&
      outside.length === key.find(({ words }) => words === dense)?.many &&
      outside.every((text) => text === DENSE);
    const said = key
      .filter(({ words }) => !apart || words !== dense)
      .sort((a, b) => b.many - a.many)
      .map(({ many, words }) => `${words.replace("%", "% zeros")} in ${plural(many, "layer")}`);
    return (
      said.join(", ") +
      (apart
        ? `; ${outside.length > 1 ? "embedding and head stay" : "the embedding stays"} at ${dense}`
        : "")
    );
  }

  /** Which kind of matrix keeps most and least bits a weight. */
  #spared(bits) {
    const mean = (name) => {
      const own = this.layers.flatMap(({ module }, i) =>
        module === name ? [bits(this.formats[i])] : [],
      );
      return own.reduce((sum, each) => sum + each, 0) / own.length;
    };
    const [most, ...others] = this.model.modules
        .map((name) => [name.split(".").pop(), mean(name)])
        .sort((a, b) => b[1] - a[1]),
      least = others.at(-1) ?? most;
    return `${most[0]} is spared most, ${number(most[1])} bits a weight; ${least[0]} least, ${number(least[1])}`;
  }

  /** The format that sensitivities are of: that of most layers, else one in the middle of the profile. */
  #reference() {
    const used = this.now.formats.filter((text) => text !== DENSE),
      known = this.predictions.formats;
    const most = [...new Set(used)].sort(
      (a, b) => used.filter((each) => each === b).length - used.filter((each) => each === a).length,
    );
    return (
      most.find((text) => known.includes(text)) ??
      known.find((text) => text.startsWith("int3")) ??
      known[0] ??
      DENSE
    );
  }

  #knobs(totals) {
    const { model, part, chosen } = this,
      forms = [...chosen].map((i) => format(this.formats[i])),
      one = (value) => {
        const all = [...new Set(forms.map(value))];
        return all.length === 1 ? all[0] : null;
      };
    const drops = forms.map(({ drop }) => drop),
      low = Math.min(...drops),
      high = Math.max(...drops),
      slider = part("sparsity");
    const scope = this.scoped,
      single = chosen.size === 1 ? this.layers[[...chosen][0]].label : "";
    part("knobs").querySelector("h2").textContent = single || plural(chosen.size, "layer");
    this.options(
      "scope",
      [
        ...(scope ? [] : [["Picked", ""]]),
        ["All blocks", "all"],
        ["Attention", "attention"],
        ["MLP", "mlp"],
        [`Block ${this.layers[this.focus].block}`, "block"],
        ...model.modules.map((name) => [name.split(".").pop(), name]),
        ["Embedding, head", "outside"],
      ],
      scope,
    );
    const mean = drops.reduce((sum, each) => sum + each, 0) / (drops.length || 1);
    if (slider !== document.activeElement || one(({ drop }) => drop) !== null)
      slider.value = Math.round(100 * mean);
    slider.nextElementSibling.textContent =
      high - low < 1e-9
        ? share(low, 0)
        : `${share(low, 0).replace(/\s%/, "")} to ${share(high, 0)}`;
    slider.disabled = [...chosen].every((i) => this.layers[i].block < 0);
    this.pressed(
      "pattern",
      one(({ pattern }) => pattern),
      [["None", ""], ...model.patterns.map((text) => [text, text])],
    );
    this.pressed(
      "bits",
      one(({ bits }) => String(bits)),
      [["16", "16"], ...model.widths.toReversed().map((bits) => [String(bits), String(bits)])],
    );
    this.options(
      "group",
      [...model.groups.map((each) => [`Groups of ${each}`, String(each)]), ["Whole rows", "0"]],
      String(one(({ group, width }) => (width ? group : this.group)) ?? this.group),
    );
    for (const knob of ["pruner", "quantizer"])
      this.element.querySelector(`[data-knob="${knob}"]`).value = this.now[knob];
    const slow = ["pruner", "quantizer"].filter((knob) => !this.isInstant(knob));
    this.element.querySelector(".workbench-made").textContent = slow.length
      ? `A quick answer first, in seconds; then by ${slow.map((knob) => this.now[knob]).join(" and ")}, block by block`
      : "At once as a run makes it";
    for (const [name, off] of [
      ["undo", !this.done.length],
      ["redo", !this.undone.length],
      ["keep", this.isDense],
    ])
      this.button(name).disabled = off;
    this.button("pin").textContent =
      chosen.size && [...chosen].every((i) => this.pinned.has(i)) ? "Unpin" : "Pin";
    this.#budget(totals);
  }

  button(name) {
    return this.element.querySelector(`[data-do="${name}"]`);
  }

  get group() {
    return (
      this.settings.group ??
      this.predictions.formats.map(format).find(({ group, width }) => width && group)?.group ??
      this.model.groups[1] ??
      0
    );
  }

  #budget(totals) {
    const slider = this.part("budget"),
      { unit, front } = this.settings,
      none = !front;
    slider.closest(".workbench-knob").hidden = none;
    if (none) return;
    const value =
      unit === "loss" ? Math.exp(totals.loss) - 1 : unit === "size" ? totals.nbytes : totals.read;
    if (slider !== document.activeElement) slider.value = 1000 * this.ends().part(value);
    slider.nextElementSibling.textContent = unit === "loss" ? `+${share(value)}` : megabytes(value);
  }

  /** The budgets between which the slider moves, on a log scale where they are losses. */
  ends() {
    const { unit, front } = this.settings,
      points = this.predictions.fronts.get(front);
    const [first, last] = [points[0], points.at(-1)].map((point) =>
      this.predictions.totals(this.predictions.mix(point, this.now.formats, this.pinned)),
    );
    const [low, high] =
      unit === "loss"
        ? [1e-3, Math.max(0.01, Math.min(10, Math.exp(first.loss) - 1))]
        : unit === "size"
          ? [first.nbytes, last.nbytes]
          : [first.read, last.read];
    const log = unit === "loss";
    return {
      value: (part) => (log ? low * (high / low) ** part : low + part * (high - low)),
      part: (value) =>
        log
          ? Math.log(Math.max(value, low) / low) / Math.log(high / low)
          : (value - low) / (high - low || 1),
    };
  }

  #histogram(why) {
    const { tensor, part } = this,
      t = this.focus,
      layer = this.layers[t],
      text = this.formats[t],
      title = part("histogram").querySelector("h2");
    const [canvas, comb] = part("histogram").querySelectorAll("canvas"),
      missing = !tensor || typeof tensor === "string",
      legend = part("histogram").querySelector(".weights-legend");
    [canvas, comb].forEach((each, i) => {
      each.hidden = missing;
      each.parentElement.hidden = Boolean(this.bell) !== Boolean(i);
    });
    for (const button of this.element.querySelectorAll('[data-group="bell"] button'))
      button.setAttribute("aria-pressed", String(button.dataset.value === this.bell));
    if (missing || tensor.name !== layer.name) {
      title.textContent = typeof tensor === "string" ? `${layer.label}: ${tensor}` : layer.label;
      return;
    }
    if (this.bell) {
      const form = format(text),
        told = (words) => {
          title.textContent = comb.dataset.words = words;
        },
        height = comb.parentElement.clientHeight;
      legend.textContent = "";
      told(
        this.comb.draw({
          tensor,
          form,
          size: form.width ? form.group || tensor.columns : this.group || tensor.columns,
          score: this.score,
          layer: layer.name,
          colour: colour(form) ?? NONE,
          height,
          told,
        }),
      );
      return;
    }
    const exact =
      this.exact?.name === layer.name && this.exact.state === this.address && !this.holding
        ? this.exact
        : null;
    const made = exact ?? tensor.histogram(text, this.score);
    const live = {
      name: "live",
      label: label(format(text)),
      colour: colour(format(text)) ?? NONE,
      dash: "solid",
      main: true,
    };
    this.histogram.height = this.height("histogram");
    const found = stages(tensor, layer, made, live),
      moves = !STEADY.includes(why);
    this.histogram.draw(
      {
        data: found,
        t: 0,
        s: text === DENSE ? 0 : 1,
        shown: [0],
        other: null,
        curve: "histogram",
        log: false,
        brush: null,
      },
      moves,
    );
    const zeros = format(text).width ? made.tails[1] / made.tails[0] : 0; // of a pattern, it says so itself
    title.textContent = `${layer.label}: ${label(format(text), true)}${zeros > 5e-4 ? `, ${share(zeros)} zeros` : ""}`;
    canvas.dataset.words = title.textContent;
    const [prunes, rounds] = [
      ["pruner", "pattern"],
      ["quantizer", "width"],
    ].map(([knob, part]) => format(text)[part] && !this.isInstant(knob));
    legend.textContent = exact
      ? "as a run makes it"
      : prunes
        ? tensor.root
          ? "at once, by Wanda's score"
          : "at once, by magnitude in each row"
        : rounds
          ? "at once, rounded to nearest"
          : "";
  }

  /** Whether what a knob shows at once is what a run makes. */
  isInstant(knob) {
    return this.model[`${knob}s`].find(({ name }) => name === this.now[knob])?.instant;
  }

  /** Whether the profile has made what is predicted by other methods than those of the state. */
  madeOtherwise({ zeros, rounded }) {
    const {
      model: { made },
      now,
    } = this;
    return Boolean(
      (made.pruner !== now.pruner && zeros) || (made.quantizer !== now.quantizer && rounded),
    );
  }

  #front(totals, known) {
    const { predictions } = this,
      dense = predictions.totals(this.dense).nbytes,
      ratio = (loss) => Math.exp(loss);
    const lines = [...predictions.fronts].map(([name, points]) => ({
      colour: name === "pruned" ? "#D55E00" : "#0072B2",
      points: points.map(({ nbytes, loss }) => ({ nbytes, ratio: ratio(loss) })),
    }));
    const own = known?.ratio ?? (totals.unknown ? NaN : ratio(totals.loss)),
      said = (nbytes, value, how) => `${megabytes(nbytes)}, ${times(value)} dense, ${how}`;
    this.front.draw({
      lines,
      height: this.height("front"),
      measured: Boolean(known?.ratio),
      dense: { nbytes: dense, ratio: 1, words: `Dense, ${megabytes(dense)}` },
      now: {
        nbytes: totals.nbytes,
        ratio: own,
        words: said(totals.nbytes, own, known?.ratio ? "measured" : "predicted"),
      },
      landmarks: this.#uniform(),
      runs: [
        ...this.model.runs
          .filter(([run]) => this.queued.every((each) => each.run !== run))
          .map(([run, name, nbytes, value]) => ({
            run,
            nbytes,
            ratio: value,
            words: `${run}, ${name}: ${said(nbytes, value, "measured")}`,
          })),
        ...this.queued
          .filter(({ final }) => final)
          .map(({ run, nbytes, final, ...each }) => ({
            run,
            nbytes,
            ratio: final,
            words: `${run}: ${megabytes(nbytes)}, ${became({ final, ...each })}`,
          })),
      ],
      kept: this.kept.map((each, place) => ({
        ...each,
        words: `${place + 1}: ${said(each.nbytes, each.ratio, each.how)}`,
      })),
    });
    this.part("front").querySelector(".weights-legend").hidden = !predictions.fronts.size;
    const box = this.element.querySelector(".workbench-kept"),
      key = JSON.stringify([this.kept, this.queued]);
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    const button = (words, title, act, css = "") =>
      Object.assign(document.createElement("button"), {
        type: "button",
        textContent: words,
        title,
        ariaLabel: title,
        onclick: act,
        className: css,
      });
    const states = [
      ...this.kept.flatMap((each, place) => [
        button(
          `${place + 1} · ${megabytes(each.nbytes)} · ${times(each.ratio)}`,
          `Open state ${place + 1}`,
          () => this.open(each.address),
        ),
        button(
          "×",
          `Drop state ${place + 1}`,
          () => this.keepOnly(this.kept.toSpliced(place, 1)),
          "drop",
        ),
      ]),
      ...this.queued.map((each) =>
        button(`${each.run} · ${became(each)}`, `Open the state of ${each.run}`, () =>
          this.open(each.state),
        ),
      ),
    ];
    box.replaceChildren(
      ...(states.length ? states : ["Keep saves this state as a point to return to."]),
    );
  }

  /** All layers of the blocks in one format: landmarks beside the best mixes. */
  #uniform() {
    const { predictions, layers, dense } = this;
    return (predictions.uniform ??= predictions.formats.flatMap((text) => {
      const { nbytes, loss, unknown } = predictions.totals(
          layers.map(({ block, columns }, i) =>
            block >= 0 && fits(format(text), columns) ? text : dense[i],
          ),
        ),
        words = label(format(text));
      return unknown
        ? []
        : [
            {
              nbytes,
              ratio: Math.exp(loss),
              colour: colour(format(text)),
              short: label(format(text), true).replace(" bits", ""),
              words: `All ${words}: ${megabytes(nbytes)}, ${times(Math.exp(loss))} dense, predicted`,
            },
          ];
    }));
  }

  /** Why the layer under the pointer, or the one looked at, has its format: its price and that of its neighbours. */
  #why() {
    const { predictions } = this,
      t = this.hovered >= 0 ? this.hovered : this.focus,
      text = this.formats[t],
      box = this.element.querySelector(".workbench-why");
    const all = this.formats.map((each, i) => predictions.figure("predicted", i, each)),
      own = all[t],
      whole = predictions.totals(this.formats).loss;
    const name = Object.assign(document.createElement("strong"), {
      textContent: `${this.layers[t].label}, ${label(format(text))}`,
    });
    if (this.isDense && this.hovered < 0) {
      box.textContent = `Nothing is compressed yet: ${this.settings.front ? "pull the budget to the left, or " : ""}set sparsity or bits.`;
      return;
    }
    if (!predictions.run) {
      box.replaceChildren(name, ": a profile would say what this layer loses in each format.");
      return;
    }
    const rank = all.filter((each) => each > own).length + 1,
      others = predictions
        .alternatives(t, text)
        .map(
          ({ text: each, more, loss }) =>
            `${label(format(each))}: ${number(loss, 2)}\u00a0nats, ${megabytes(Math.abs(more))} ${more < 0 ? "less" : "more"}`,
        );
    const first =
      text === DENSE
        ? " loses nothing."
        : Number.isFinite(own)
          ? ` loses ${number(own, 2)} nats a token, ${share(own / (whole || 1))} of all, rank ${rank} of ${all.length}.`
          : " has no prediction in this format.";
    box.replaceChildren(
      name,
      first,
      others.length ? ` Instead ${others.join("; ")}.` : "",
      this.pinned.has(t) ? " Pinned ◆." : "",
    );
  }

  options(knob, offered, value) {
    offer(this.element.querySelector(`[data-knob="${knob}"]`), offered, value);
  }

  /** Buttons of which the one of that value is taken. */
  pressed(group, value, offered) {
    const box = this.element.querySelector(`[data-group="${group}"]`);
    if (box.children.length !== offered.length)
      box.replaceChildren(
        ...offered.map(([words, each]) =>
          Object.assign(document.createElement("button"), {
            type: "button",
            textContent: words,
            value: each,
          }),
        ),
      );
    for (const button of box.children) {
      button.setAttribute("aria-pressed", String(button.value === value));
      const shade = colour(
        format(
          group === "bits"
            ? combined("", button.value === "16" ? "" : this.width(button.value))
            : button.value || DENSE,
        ),
      );
      if (shade) button.style.setProperty("--format", shade);
    }
  }

  width(bits) {
    return this.group ? `int${bits}-g${this.group}` : `int${bits}`;
  }
}
