/* The histogram on Home: it plays the stages of a method until somebody stops it or chooses a stage. Bars and
   colors move between two measured stages; nothing in between is measured. People who asked for less motion
   choose the stages themselves. */
(() => {
  const { create, find, still } = window.slimscope;
  const STAY_MS = 2600;
  const MOVE_MS = 700;
  const WIDTH = 960;
  const HEIGHT = 300;
  /** Colors of stages that are lighter in the dark mode. @type {Record<string, string>} */
  const INKS = { "#5B6472": "--muted", "#0072B2": "--blue" };

  /** @typedef {{label: string, color: string, zeros: number, heights: number[], said: string}} HeroStage `zeros`: a share */

  /** A color as [red, green, blue] in the current color mode. @param {string} hex */
  function rgb(hex) {
    const css = getComputedStyle(document.body);
    const ink = INKS[hex] ? css.getPropertyValue(INKS[hex]).trim() : hex;
    return [1, 3, 5].map((i) => parseInt(ink.slice(i, i + 2), 16));
  }

  /** @type {(from: number[], to: number[], part: number) => number[]} */
  const mix = (from, to, part) => from.map((value, i) => value + (to[i] - value) * part);
  const ease = (/** @type {number} */ part) =>
    part < 0.5 ? 2 * part * part : 1 - (2 - 2 * part) ** 2 / 2;

  /** Ticks of the weight axis: -edge/2, 0, edge/2, in two digits. @param {number} edge */
  function axis(edge) {
    const tick = (/** @type {number} */ weight) =>
      `<span style="left: ${50 + (50 * weight) / edge}%">${Number(weight.toPrecision(2)).toString().replace("-", "−")}</span>`;
    return [-edge / 2, 0, edge / 2].map(tick).join("");
  }

  /** The outline of a histogram, without its ends. @param {number[]} heights */
  function outline(heights) {
    const wide = WIDTH / heights.length;
    const bar = (/** @type {number} */ height, /** @type {number} */ i) => {
      const y = (HEIGHT - height * (HEIGHT - 8)).toFixed(1);
      return `L${(i * wide).toFixed(1)} ${y}L${((i + 1) * wide).toFixed(1)} ${y}`;
    };
    return `M0 ${HEIGHT}${heights.map(bar).join("")}L${WIDTH} ${HEIGHT}`;
  }

  class Hero {
    frame = 0;
    timer = 0;
    place = 0;
    playing = !still();

    /** @param {HTMLElement} figure */
    constructor(figure) {
      this.figure = figure;
      /** @type {{edge: number, live: boolean, stages: HeroStage[]}} */
      const data = JSON.parse(figure.dataset.histogram ?? "");
      this.stages = data.stages;
      const [first] = this.stages;
      const plot = find(figure, ".hero-plot");
      plot.innerHTML = `<div class="hero-zeros"><span></span><i></i></div>
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" aria-hidden="true">
      <path class="hero-first"></path><path class="hero-now"></path></svg>
      <div class="hero-ticks">${axis(data.edge)}</div>`;
      find(plot, ".hero-first", SVGElement).setAttribute("d", outline(first.heights));
      this.area = find(plot, ".hero-now", SVGElement);
      this.meter = find(plot, ".hero-zeros span");
      this.shown = { heights: first.heights, color: rgb(first.color), zeros: first.zeros };
      this.playButton = find(figure, ".hero-play");
      this.playButton.onclick = () => this.play(!this.playing);
      this.buttons = this.stages.map((stage, i) => this.button(stage, i));
      find(figure, ".hero-stages").replaceChildren(...this.buttons);
      this.theme = new MutationObserver(() => this.go(this.place));
      this.theme.observe(document.body, { attributeFilter: ["class"] });
      this.write();
      this.paint();
      this.playing = this.playing && !data.live; // a live run shows its newest stage
      this.play(this.playing);
      if (data.live) this.go(this.stages.length - 1);
    }

    /** @type {(stage: HeroStage, i: number) => HTMLButtonElement} */
    button({ label, color }, i) {
      const button = create("button", { type: "button", className: "small", textContent: label });
      button.style.setProperty("--stage", INKS[color] ? `var(${INKS[color]})` : color);
      button.onclick = () => {
        this.play(false);
        this.go(i);
      };
      return button;
    }

    paint() {
      const { heights, color, zeros } = this.shown;
      const fill = `rgb(${color.map(Math.round).join(",")})`;
      this.area.setAttribute("d", `${outline(heights)}Z`);
      this.area.style.fill = fill;
      this.meter.style.width = `${100 * zeros}%`;
      this.meter.style.background = fill;
      find(this.figure, ".hero-zeros i").textContent = `${Math.round(100 * zeros)}\u00a0% zeros`;
    }

    /** Shows the text of the stage. */
    write() {
      const { label, said } = this.stages[this.place];
      find(this.figure, ".hero-stage").textContent = label;
      find(this.figure, ".hero-said span").textContent = said;
      this.buttons.forEach((button, i) =>
        button.setAttribute("aria-pressed", String(i === this.place)),
      );
    }

    /** Moves to a stage. @param {number} place */
    go(place) {
      const from = this.shown;
      const to = this.stages[place];
      const begin = performance.now();
      const last = this.stages[this.place].label;
      this.place = place;
      if (last !== to.label) {
        find(this.figure, ".hero-stage").textContent = `${last} → ${to.label}`;
        find(this.figure, ".hero-said span").textContent = ""; // until the picture is that of `to`
      }
      cancelAnimationFrame(this.frame);
      const step = (/** @type {number} */ time) => {
        const passed = Math.min(1, Math.max(0, (time - begin) / MOVE_MS));
        const part = still() ? 1 : ease(passed);
        this.shown = {
          heights: mix(from.heights, to.heights, part),
          color: mix(from.color, rgb(to.color), part),
          zeros: from.zeros + (to.zeros - from.zeros) * part,
        };
        this.paint();
        if (part === 1) this.write(); // picture and text show the same stage
        if (part < 1 && this.figure.isConnected) this.frame = requestAnimationFrame(step);
      };
      step(begin);
    }

    /** @param {boolean} playing */
    play(playing) {
      this.playing = playing;
      this.playButton.textContent = playing ? "Pause" : "Play";
      this.playButton.setAttribute("aria-pressed", String(playing));
      this.wait();
    }

    /** Moves to the next stage repeatedly, after a delay. */
    wait() {
      clearTimeout(this.timer);
      if (!this.playing || !this.figure.isConnected) return;
      this.timer = setTimeout(() => {
        if (!document.hidden) this.go((this.place + 1) % this.stages.length);
        this.wait();
      }, STAY_MS);
    }

    stop() {
      clearTimeout(this.timer);
      cancelAnimationFrame(this.frame);
      this.theme.disconnect();
    }
  }

  window.slimscope.figures("histogram", (figure) => {
    const hero = new Hero(figure);
    return () => hero.stop();
  });
})();
