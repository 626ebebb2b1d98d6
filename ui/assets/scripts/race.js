/* Two answers on Home, replayed at the pace they were written, once they are seen. People who asked
   for less motion see both whole. */
(() => {
  function race(figure) {
    const lanes = JSON.parse(figure.dataset.race).map((lane, place) => {
      let at = 0;
      const steps = lane.steps.map(([ms, text]) => ({ at: (at += ms), text }));
      const shown = figure.querySelectorAll(".race-lanes > div")[place];
      return {
        steps,
        text: shown.querySelector(".race-text"),
        meter: shown.querySelector(".race-meter"),
      };
    });
    let frame = 0;

    function draw(time) {
      for (const lane of lanes) {
        const done = lane.steps.filter((step) => step.at <= time);
        const words = done
          .map((step) => step.text)
          .join("")
          .replace(/\n{2,}/g, "\n")
          .replace(/\s+…$/, "…");
        if (lane.text.textContent !== words) lane.text.textContent = words;
        const over = done.length === lane.steps.length,
          end = lane.steps.at(-1)?.at ?? 0;
        lane.meter.textContent = `${(Math.min(time, end) / 1000).toFixed(1)} s${over ? ", done" : ""}`;
      }
      return lanes.every((lane) => (lane.steps.at(-1)?.at ?? 0) <= time);
    }

    function start() {
      cancelAnimationFrame(frame);
      if (window.slimscope.still()) return void draw(Infinity);
      const begin = performance.now();
      const step = (now) => {
        if (!draw(now - begin) && figure.isConnected) frame = requestAnimationFrame(step);
      };
      frame = requestAnimationFrame(step);
    }

    draw(Infinity); // as high as the whole text: nothing below moves while it is written
    for (const { text } of lanes) text.style.minHeight = `${text.offsetHeight}px`;
    draw(0);
    figure.querySelector(".race-again").onclick = start;
    new IntersectionObserver(
      (seen, observer) => {
        if (!seen.some((each) => each.isIntersecting)) return;
        observer.disconnect();
        start();
      },
      { threshold: 0.3 },
    ).observe(figure);
  }

  window.slimscope.figures("race", race);
})();
