/* A slider under a chart whose `layout.meta.scrub` holds stops: {trace, at, stops: [{name, label,
   title, said, y, colour, fill}]}. The chart goes from one stop to the next in 200 ms, or at once
   for people who asked for less motion; the title of its card goes with it, and `settled` is told
   the stop at which somebody rests. */
(() => {
  const shown_bars = new Set(); // of the charts of this page

  /* Goes on by one stage, or to the stage of that name; false where there is none. */
  const nextStop = () => [...shown_bars].some((bar) => bar.next());
  const goTo = (name) => [...shown_bars].some((bar) => bar.to(name));

  const REST_MS = 300;

  function scrubber(box, show, settled) {
    const bar = document.createElement("div");
    let scrub = null, place = 0, shown = null, timer = 0, rest = 0, head = null;
    bar.className = "scrub";
    bar.hidden = true;
    bar.innerHTML = `<p class="scrub-said" aria-live="polite"></p>
      <input type="range" min="0" step="1" aria-label="Step"><div class="scrub-stops"></div>`;
    const [said, slider, names] = bar.children;
    box.append(bar);

    const mix = (from, to, part) => from.map((y, i) => y + (to[i] - y) * part);
    const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

    /* The server knows only the stop it began at, and writes that whenever it draws the chart. */
    function titled() {
      const title = head?.querySelector("h2"), stop = scrub?.stops[place];
      if (title && stop && title.textContent !== stop.title) title.textContent = stop.title;
    }

    function watchTitle() {
      head = box.closest(".card")?.querySelector("h2")?.closest(".block");
      if (head) new MutationObserver(titled).observe(head, { childList: true, characterData: true, subtree: true });
    }

    function words() {
      const stop = scrub.stops[place];
      titled();
      said.innerHTML = "";
      const name = document.createElement("b");
      name.textContent = stop.label;
      said.append(name, ` ${stop.said.replaceAll(" %", "\u00a0%")}`); // no line begins with a unit
      slider.value = place;
      slider.setAttribute("aria-valuetext", stop.label);
      [...names.children].forEach((each, i) => each.setAttribute("aria-pressed", String(i === place)));
    }

    function go(to) {
      if (to === place) return;
      place = to;
      words();
      window.slimscope.address({ at: scrub.stops[place].name });
      clearTimeout(rest);
      rest = setTimeout(() => settled(scrub.stops[place]), REST_MS);
      const from = shown, stop = scrub.stops[place], begin = performance.now();
      cancelAnimationFrame(timer);
      function step(now) {
        const part = still() ? 1 : Math.min(1, (now - begin) / 200);
        shown = part < 1 ? mix(from, stop.y, part) : stop.y;
        show(scrub.trace, { ...stop, y: shown });
        if (part < 1) timer = requestAnimationFrame(step);
      }
      step(performance.now());
    }

    /* Puts the stop a person was at into a new figure, before it is drawn. */
    function prepare(figure) {
      const was = scrub && scrub.stops[place] ? scrub.stops[place].name : null;
      scrub = (figure.layout.meta || {}).scrub || null;
      box.classList.toggle("scrubbed", Boolean(scrub));
      bar.hidden = !scrub;
      if (!scrub) return;
      if (!head) watchTitle();
      const kept = scrub.stops.findIndex((stop) => stop.name === was);
      place = kept >= 0 ? kept : scrub.at;
      const stop = scrub.stops[place], trace = figure.data[scrub.trace];
      shown = trace.y = stop.y;
      trace.line.color = stop.colour;
      trace.fillcolor = stop.fill;
      trace.name = stop.label;
      slider.max = scrub.stops.length - 1;
      names.replaceChildren(...scrub.stops.map((each, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = each.label;
        button.style.left = `${(100 * i) / Math.max(1, scrub.stops.length - 1)}%`;
        button.tabIndex = -1; // the slider does the same by keyboard
        button.onclick = () => { go(i); slider.focus(); };
        return button;
      }));
      words();
    }

    slider.oninput = () => go(Number(slider.value));
    shown_bars.add({
      next: () => Boolean(scrub) && box.isConnected && place + 1 < scrub.stops.length && (go(place + 1), true),
      to: (name) => {
        const found = scrub && box.isConnected ? scrub.stops.findIndex((stop) => stop.name === name) : -1;
        return found >= 0 && (go(found), true);
      },
    });
    return { prepare };
  }

  Object.assign(window.slimscope, { scrubber, nextStop, goTo });
})();
