/* The histogram on Home: it goes through the stages of a method by itself, until somebody stops it
   or chooses a stage. Bars and colours move for 700 ms between two measured stages; nothing in
   between is measured. People who asked for less motion choose the stages themselves. */
(() => {
  const STAY = 2600,
    MOVE = 700,
    WIDTH = 960,
    HEIGHT = 300;
  const INKS = { "#5B6472": "--muted", "#0072B2": "--blue" }; // lighter in the dark mode
  const seen = (hex) =>
    INKS[hex] ? getComputedStyle(document.body).getPropertyValue(INKS[hex]).trim() : hex;
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(seen(hex).slice(i, i + 2), 16));
  const mix = (from, to, part) => from.map((value, i) => value + (to[i] - value) * part);
  const ease = (part) => (part < 0.5 ? 2 * part * part : 1 - (2 - 2 * part) ** 2 / 2);

  /* Ticks of the weight axis: -edge/2, 0, edge/2, in three digits. */
  function axis(edge) {
    return [-edge / 2, 0, edge / 2]
      .map(
        (weight) =>
          `<span style="left: ${50 + (50 * weight) / edge}%">${Number(weight.toPrecision(2)).toString().replace("-", "−")}</span>`,
      )
      .join("");
  }

  /* Draws the histogram of a figure; returns what stops it. */
  function hero(figure) {
    const data = JSON.parse(figure.dataset.histogram),
      stages = data.stages;
    const plot = figure.querySelector(".hero-plot"),
      play = figure.querySelector(".hero-play");
    const title = figure.querySelector(".hero-stage"),
      said = figure.querySelector(".hero-said");
    const group = figure.querySelector(".hero-stages");
    const bins = stages[0].heights.length;
    plot.innerHTML = `<div class="hero-zeros"><span></span><i></i></div>
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" aria-hidden="true">
      <path class="hero-first"></path><path class="hero-now"></path></svg>
      <div class="hero-ticks">${axis(data.edge)}</div>`;
    const meter = plot.querySelector(".hero-zeros");
    const [outline, area] = plot.querySelectorAll("path");

    const trace = (heights) =>
      heights
        .map((h, i) => {
          const y = (HEIGHT - h * (HEIGHT - 8)).toFixed(1);
          return `L${((i * WIDTH) / bins).toFixed(1)} ${y}L${(((i + 1) * WIDTH) / bins).toFixed(1)} ${y}`;
        })
        .join("");
    outline.setAttribute("d", `M0 ${HEIGHT}${trace(stages[0].heights)}L${WIDTH} ${HEIGHT}`);

    let place = 0,
      now = stages[0].heights,
      colour = rgb(stages[0].colour),
      zeros = stages[0].zeros;
    let frame = 0,
      timer = 0,
      playing = !window.slimscope.still();

    function paint() {
      const fill = `rgb(${colour.map(Math.round).join(",")})`;
      area.setAttribute("d", `M0 ${HEIGHT}${trace(now)}L${WIDTH} ${HEIGHT}Z`);
      area.style.fill = fill;
      meter.firstChild.style.width = `${100 * zeros}%`;
      meter.firstChild.style.background = fill;
    }

    function words() {
      title.textContent = stages[place].label;
      meter.lastChild.textContent = `${Math.round(100 * stages[place].zeros)}\u00a0% zeros`;
      said.textContent = stages[place].said.replaceAll(" %", "\u00a0%");
      [...group.children].forEach((button, i) =>
        button.setAttribute("aria-pressed", String(i === place)),
      );
    }

    function go(to) {
      const from = [now, colour, zeros],
        stage = stages[to],
        begin = performance.now();
      place = to;
      cancelAnimationFrame(frame);
      function step(time) {
        const part = window.slimscope.still()
          ? 1
          : ease(Math.min(1, Math.max(0, (time - begin) / MOVE)));
        now = mix(from[0], stage.heights, part);
        colour = mix(from[1], rgb(stage.colour), part);
        zeros = from[2] + (stage.zeros - from[2]) * part;
        paint();
        if (part >= 0.5) words(); // not ahead of the picture
        if (part < 1 && figure.isConnected) frame = requestAnimationFrame(step);
      }
      step(begin);
    }

    function advance() {
      clearTimeout(timer);
      if (!playing || !figure.isConnected) return;
      timer = setTimeout(() => {
        if (!document.hidden) go((place + 1) % stages.length);
        advance();
      }, STAY);
    }

    function set(on) {
      playing = on;
      play.textContent = on ? "Pause" : "Play";
      play.setAttribute("aria-pressed", String(on));
      advance();
    }

    group.replaceChildren(
      ...stages.map((stage, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "small";
        button.textContent = stage.label;
        button.style.setProperty(
          "--stage",
          INKS[stage.colour] ? `var(${INKS[stage.colour]})` : stage.colour,
        );
        button.onclick = () => {
          set(false);
          go(i);
        };
        return button;
      }),
    );
    const theme = new MutationObserver(() => go(place));
    theme.observe(document.body, { attributeFilter: ["class"] });
    play.onclick = () => set(!playing);
    words();
    paint();
    set(playing);
    return () => {
      clearTimeout(timer);
      cancelAnimationFrame(frame);
      theme.disconnect();
    };
  }

  window.slimscope.figures("histogram", hero);
})();
