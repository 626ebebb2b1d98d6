/* The log of a run (ui/pages/run/job_log.py): each part is appended where the last one ended. */
(() => {
  const { find } = window.slimscope;
  const MAX_CHARACTERS = 400000; // on the page

  /** @type {Slimscope["logView"]} */
  function logView(element, props, watch) {
    const log = find(element, "pre");
    const follow = find(element, "input", HTMLInputElement);
    const scroll = () => {
      if (follow.checked) log.scrollTop = log.scrollHeight;
    };
    let source = "";
    let end = 0;

    function draw() {
      const part = props.value;
      if (!part || !("text" in part) || part.text === undefined) return;
      const continues = part.source === source && part.start === end;
      if (part.source === source && !continues && part.start !== 0) return;
      if (continues) log.append(part.text);
      else log.textContent = part.text;
      if (log.textContent.length > MAX_CHARACTERS)
        log.textContent = log.textContent.slice(-MAX_CHARACTERS / 2);
      ({ source, end } = part);
      find(element, ".log-source").textContent = part.title;
      props.value = { source, end };
      scroll();
    }

    follow.addEventListener("change", scroll);
    log.addEventListener("wheel", (event) => {
      if (event.deltaY < 0) follow.checked = false;
    });
    watch("value", draw);
    draw();
  }

  Object.assign(window.slimscope, { logView });
})();
