/* One module in every block, one histogram behind the other, through the stages: between two of them the
   blocks follow one another, like a zip. Nothing between two stages is measured. */
import { bottomAxis, em, inks, number, still, surface, ticks, tween } from "./canvas.js";
import { rebinned } from "./histogram.js";

const LEFT = 44,
  RIGHT = 12,
  TOP = 48,
  BOTTOM = () => em(2.25),
  BINS = 128,
  OVERLAP = 4,
  MOST = 0.8,
  LAG = 1.2,
  MOVE_MS = 450,
  PLAY_MS = 1400,
  REST_MS = 500;

export class Ridges {
  #shown = null;
  #stop = () => {};
  #film = null;
  #playing = false;

  /** @param {{stage: (s: number) => void}} on */
  constructor(canvas, on) {
    Object.assign(this, { canvas, on });
    let from = null;
    canvas.onpointerdown = (event) => {
      if (event.button || !this.#shown) return;
      from = event.offsetX;
      canvas.setPointerCapture(event.pointerId);
    };
    canvas.onpointermove = (event) => {
      if (from === null) return;
      const part = (event.offsetX - LEFT) / (canvas.clientWidth - LEFT - RIGHT);
      if (Math.abs(event.offsetX - from) > 3)
        this.scrub(Math.max(0, Math.min(1, part)) * (this.#shown.data.main.length - 1));
    };
    canvas.onpointerup = (event) => {
      if (from !== null && Math.abs(event.offsetX - from) > 3)
        on.stage(this.#shown.data.main[Math.round(this.#shown.place)]);
      from = null;
    };
  }

  /** Histograms of a module in all blocks, exact zeros left out, on one axis and one scale. */
  #read(data, module) {
    const cells = data.blocks.map((block) => data.at(block, module)).filter((t) => t >= 0),
      stages = data.stages.map((_, s) => s);
    const reach = cells.map((t) => data.reach(t, data.main)).sort((a, b) => a - b)[
      Math.floor(MOST * (cells.length - 1))
    ]; // of most blocks
    const heights = stages.map((s) =>
      cells.map((t) => {
        const row = rebinned(data, t, s, [-reach, reach], BINS);
        return row.map((h, i) => 0.25 * (row[i - 1] ?? h) + 0.5 * h + 0.25 * (row[i + 1] ?? h));
      }),
    );
    const middle = heights[data.main[0]].map((row) => Math.max(...row)).sort((a, b) => a - b);
    return { key: `${data.etag} ${module}`, cells, heights, reach, tallest: middle.at(-1) || 1 };
  }

  draw({ data, t, s }, moves) {
    const { module } = data.tensors[t],
      before = this.#shown,
      same = before?.key === `${data.etag} ${module}`;
    const place = this.#playing ? before.place : Math.max(0, data.main.indexOf(s));
    this.#shown = {
      ...(same ? before : this.#read(data, module)),
      data,
      picked: t,
      module,
      s,
      place,
    };
    if (this.#playing) return;
    this.#stop();
    if (moves && same && before.s !== s)
      this.#stop = tween((part) => this.#paint(before.s, s, part), MOVE_MS);
    else this.#paint(s, s, 1);
  }

  /** Shows a place between the main stages, from 0. */
  scrub(place) {
    const { main } = this.#shown.data,
      i = Math.min(Math.floor(place), main.length - 2);
    this.#stop();
    this.#shown.place = place;
    if (main.length > 1) this.#paint(main[i], main[i + 1], place - i);
  }

  /** Goes through the main stages once, and everything else with it; `ended` is called after the last. */
  play(ended) {
    const { main } = this.#shown.data,
      last = main.length - 1,
      begin = performance.now();
    let frame = 0,
      reached = -1;
    const step = (now) => {
      const at = Math.max(0, now - begin) / (PLAY_MS + REST_MS),
        i = Math.min(last, Math.floor(at));
      if (i !== reached) this.on.stage(main[(reached = i)]);
      this.scrub(
        Math.min(last, still() ? i : i + Math.min(1, ((at - i) * (PLAY_MS + REST_MS)) / PLAY_MS)),
      );
      this.#playing = at < last;
      if (this.#playing) frame = requestAnimationFrame(step);
      else ended();
    };
    this.#stop();
    this.#stop = () => cancelAnimationFrame(frame);
    this.#playing = true;
    step(begin);
  }

  /** Films `play` as WebM for `saved(blob)`. */
  film(saved) {
    const recorder = new MediaRecorder(this.canvas.captureStream(30)),
      parts = [];
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = () => saved(new Blob(parts, { type: recorder.mimeType }));
    this.#film = recorder;
    recorder.start();
    this.play(() =>
      setTimeout(() => {
        recorder.stop();
        this.#film = null;
      }, REST_MS),
    );
  }

  #paint(from, to, part) {
    const { data, cells, heights, reach, tallest, picked } = this.#shown,
      ink = inks(),
      many = cells.length;
    const area = surface(
        this.canvas,
        TOP + BOTTOM() + Math.max(180, Math.min(520, 15 * many + 60)),
      ),
      { pen, width, height } = area;
    if (this.#film) {
      pen.fillStyle = ink.paper;
      pen.fillRect(0, 0, width, height);
    }
    const gap = (height - TOP - BOTTOM()) / Math.max(1, many),
      scale = (OVERLAP * Math.max(gap, 14)) / tallest;
    const x = Object.assign((w) => LEFT + ((w + reach) / (2 * reach)) * (width - LEFT - RIGHT), {
      middle: (LEFT + width - RIGHT) / 2,
    });
    const colours = [from, to].map((s) => ink.stage(data.stages[s].colour));
    cells.forEach((t, b) => {
      const own = Math.max(0, Math.min(1, part * (1 + LAG) - (LAG * b) / Math.max(1, many - 1)));
      const floor = TOP + (b + 1) * gap,
        [a, z] = [heights[from][b], heights[to][b]];
      pen.beginPath();
      pen.moveTo(x(-reach), floor);
      for (let i = 0; i < BINS; i++)
        pen.lineTo(
          x(-reach + ((i + 0.5) * 2 * reach) / BINS),
          floor - Math.min(scale * (a[i] + (z[i] - a[i]) * own), 5 * OVERLAP * gap),
        );
      pen.lineTo(x(reach), floor);
      Object.assign(pen, { fillStyle: ink.paper, globalAlpha: 0.82 });
      pen.fill();
      for (const [place, alpha] of [
        [0, 1 - own],
        [1, own],
      ]) {
        Object.assign(pen, {
          fillStyle: colours[place],
          strokeStyle: colours[place],
          globalAlpha: 0.28 * alpha,
          lineWidth: t === picked ? 2.5 : 1,
        });
        pen.fill();
        pen.globalAlpha = alpha;
        pen.stroke();
      }
      pen.globalAlpha = 1;
      Object.assign(pen, {
        fillStyle: t === picked ? ink.text : ink.muted,
        textAlign: "right",
        textBaseline: "alphabetic",
      });
      if (t === picked || b % Math.max(1, Math.ceil(many / 10)) === 0)
        pen.fillText(String(data.tensors[t].block), LEFT - 8, floor);
    });
    pen.fillStyle = ink.text;
    pen.textAlign = "left";
    const [before, after] = [from, to].map((s) => data.stages[s].label);
    pen.fillText(
      from === to || part >= 1 ? after : part <= 0 ? before : `${before} → ${after}`,
      LEFT,
      14,
    );
    bottomAxis(area, ink, ticks(-reach, reach, width < 480 ? 4 : 8), x, "Weight");
  }

  /** Where 99 % of the weights that are not zero lie, by block, and what is drawn, in words. */
  widths() {
    return this.#shown.cells.map((t) => [
      this.#shown.data.tensors[t].block,
      this.#shown.data.reach(t, [this.#shown.s], 0.99),
    ]);
  }
  note() {
    const { data, cells, module, s, reach } = this.#shown,
      sum = (name) => cells.reduce((all, t) => all + data.tail(t, s)[name], 0);
    return `${module.split(".").pop()}, ${data.stages[s].label}: n = ${cells.length} blocks, one axis (±${number(reach)}) and scale, ${number((100 * sum("zeros")) / (sum("n") || 1))} % exact zeros left out, tall peaks clipped. Frames between stages are drawn, not measured.`;
  }
  table() {
    const { data, cells, s } = this.#shown;
    const rows = cells.map((t) => [
      data.tensors[t].block,
      ...data.range(t),
      data.tail(t, s).zeros,
      ...data.counts(t, s),
    ]);
    return [
      [
        "Block",
        "From",
        "To",
        "Exact zeros",
        ...Array.from({ length: data.bins }, (_, i) => `Bin ${i}`),
      ],
      rows,
    ];
  }
}
