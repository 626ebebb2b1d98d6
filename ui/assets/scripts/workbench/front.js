/* Size against quality: the best mixes that the profile predicts, the state that is looked at, and those that are kept. */
import { bottomAxis, em, inks, stroke, surface, ticks, times } from "../weights/canvas.js";

const RIGHT = 14,
  TOP = 10,
  REACH = 14,
  LEFT = () => em(2.75),
  BOTTOM = () => em(2.25);
const TOP_RATIO = 4; // where choices are made; worse ones are drawn at the edge

/** @typedef {{nbytes: number, ratio: number, words: string, state?: number, run?: string}} Point */

export class FrontChart {
  #points = [];

  /** @param {{hover: (words: string) => void, pick: (place: number) => void}} on `place`: of a state that is kept; a click on a run opens its page */
  constructor(canvas, on) {
    this.canvas = canvas;
    canvas.onpointermove = (event) => {
      const near = this.#near(event);
      on.hover(near?.words ?? "");
      canvas.style.cursor = near?.state >= 0 || near?.run ? "pointer" : "default";
    };
    canvas.onpointerleave = () => on.hover("");
    canvas.onclick = (event) => {
      const near = this.#near(event);
      if (near?.state >= 0) on.pick(near.state);
      else if (near?.run) location.href = `run?id=${near.run}`;
    };
  }

  #near({ offsetX, offsetY }) {
    const far = (each) => Math.hypot(each.x - offsetX, each.y - offsetY);
    const near = this.#points.reduce(
      (best, each) => (!best || far(each) < far(best) ? each : best),
      null,
    );
    return near && far(near) < REACH ? near : null;
  }

  /** @param {{lines: {colour: string, points: Point[]}[], landmarks: Point[], dense: Point, now: Point, kept: Point[], runs: Point[], measured: boolean, height: number}} shown `landmarks`: uniform formats */
  draw({ lines, landmarks, dense, now, kept, runs, measured, height: tall }) {
    const area = surface(this.canvas, tall),
      { pen, width, height, line } = area,
      ink = inks(),
      floor = height - BOTTOM();
    const all = [dense, now, ...kept, ...runs].filter(({ ratio }) => Number.isFinite(ratio)),
      every = [...all, ...lines.flatMap((each) => each.points)];
    const top = Math.min(TOP_RATIO, 1.1 * Math.max(1.5, ...every.map(({ ratio }) => ratio)));
    const most = 1.03 * Math.max(...all.map(({ nbytes }) => nbytes)),
      least = Math.min(...every.filter(({ ratio }) => ratio < top).map(({ nbytes }) => nbytes)),
      low = Math.max(0, least - 0.05 * (most - least));
    const x = Object.assign(
      (nbytes) => LEFT() + ((nbytes - low) / (most - low)) * (width - LEFT() - RIGHT),
      { middle: (LEFT() + width - RIGHT) / 2 },
    );
    const y = (ratio) =>
      floor -
      (Math.log(Math.max(0.95, Math.min(top, ratio)) / 0.95) / Math.log(top / 0.95)) *
        (floor - TOP);
    Object.assign(pen, {
      fillStyle: ink.muted,
      strokeStyle: ink.line,
      lineWidth: 1,
      textAlign: "right",
      textBaseline: "middle",
    });
    let above = Infinity; // ticks stand apart, however large the type is
    for (const tick of [1, 1.1, 1.25, 1.5, 2, 3, 4].filter((each) => each <= top)) {
      if (above - y(tick) < 0.75 * line) continue;
      above = y(tick);
      pen.fillText(`${times(tick)}`, LEFT() - 5, y(tick), LEFT() - 6);
      stroke(pen, LEFT(), y(tick), width - RIGHT, y(tick));
    }
    const marks = ticks(low / 1e6, (most - 0.04 * (most - low)) / 1e6, 5);
    bottomAxis(
      area,
      ink,
      marks,
      Object.assign((at) => x(at * 1e6), { middle: x.middle }),
      "Size, MB",
    );
    for (const { colour, points } of lines) {
      Object.assign(pen, { strokeStyle: ink.stage(colour), lineWidth: 1.75 });
      pen.beginPath();
      for (const each of points) if (each.ratio <= top) pen.lineTo(x(each.nbytes), y(each.ratio));
      pen.stroke();
    }
    this.#points = [
      ...landmarks.filter(({ ratio, nbytes }) => ratio <= top && nbytes >= low),
      ...runs,
      dense,
      ...kept.map((each, state) => ({ ...each, state })),
      { ...now, own: true },
    ]
      .filter(({ ratio }) => Number.isFinite(ratio))
      .map((each) => ({ ...each, x: x(each.nbytes), y: y(each.ratio) }));
    for (const { x: px, y: py, state, own, run, colour, ratio, short } of this.#points) {
      pen.beginPath();
      if (colour) {
        Object.assign(pen, { fillStyle: colour, textAlign: "left" });
        pen.arc(px, py, 3.5, 0, 7);
        pen.fill();
        if (width > 300)
          Object.assign(pen, { fillStyle: ink.muted }).fillText(short, px + 6, py - 7);
        continue;
      }
      if (run) pen.rect(px - 5, py - 5, 10, 10);
      else pen.arc(px, py, own ? 7 : 6, 0, 7);
      Object.assign(pen, {
        fillStyle: own && measured ? ink.accent : ink.paper,
        strokeStyle: own ? ink.accent : ink.text,
        lineWidth: own ? 3 : 1.5,
      });
      pen.fill();
      pen.stroke();
      Object.assign(pen, { fillStyle: ink.text, textAlign: "center" });
      if (state >= 0) pen.fillText(String(state + 1), px, py - 14);
      if (own && ratio > top) pen.fillText(`↑ ${times(ratio)}`, px, py + 18);
    }
  }
}
