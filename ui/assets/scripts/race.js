/* Two answers on Home, replayed at the pace they were written, once they are seen. People who asked
   for less motion see both whole. */
(() => {
  const { find, findAll, figures, still } = window.slimscope;

  /** The answers side by side: texts by the ms at which they were written. @param {HTMLElement} figure */
  function lanesOf(figure) {
    /** @type {{steps: [ms: number, text: string][]}[]} */
    const recorded = JSON.parse(figure.dataset.race ?? "");
    const boxes = findAll(figure, ".race-lanes > div");
    return recorded.map(({ steps }, i) => {
      let at = 0;
      return {
        steps: steps.map(([ms, text]) => ({ at: (at += ms), text })),
        end: at,
        text: find(boxes[i], ".race-text"),
        meter: find(boxes[i], ".race-meter"),
      };
    });
  }

  /** @param {HTMLElement} figure */
  function race(figure) {
    const lanes = lanesOf(figure);
    let frame = 0;

    /** Shows what was written after so many ms; true when all was. @param {number} time */
    function draw(time) {
      for (const lane of lanes) {
        const written = lane.steps.filter((step) => step.at <= time);
        const text = written
          .map((step) => step.text)
          .join("")
          .replace(/\n{2,}/g, "\n")
          .replace(/\s+…$/, "…");
        if (lane.text.textContent !== text) lane.text.textContent = text;
        const seconds = (Math.min(time, lane.end) / 1000).toFixed(1);
        lane.meter.textContent = `${seconds} s${lane.end <= time ? ", done" : ""}`;
      }
      return lanes.every((lane) => lane.end <= time);
    }

    function start() {
      cancelAnimationFrame(frame);
      const begin = performance.now();
      const step = (/** @type {number} */ now) => {
        const isOver = draw(still() ? Infinity : now - begin);
        if (!isOver && figure.isConnected) frame = requestAnimationFrame(step);
      };
      step(begin);
    }

    draw(Infinity); // as high as the whole text: nothing below moves while it is written
    for (const { text } of lanes) text.style.minHeight = `${text.offsetHeight}px`;
    draw(0);
    find(figure, ".race-again").onclick = start;
    const observer = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        observer.disconnect();
        start();
      },
      { threshold: 0.3 },
    );
    observer.observe(figure);
  }

  figures("race", race);
})();
