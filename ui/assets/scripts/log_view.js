/* The log of a run (ui/runs/job_log.py): each part is appended where the last one ended. */
(() => {
  const KEEP = 400000; // characters on the page

  function logView(element, props, watch) {
    const pre = element.querySelector("pre"),
      follow = element.querySelector("input");
    const toBottom = () => {
      pre.scrollTop = pre.scrollHeight;
    };
    let source = null,
      end = 0;

    function draw() {
      const part = props.value;
      if (!part || part.text === undefined) return;
      if (part.source === source && part.start !== end && part.start !== 0) return;
      if (part.source === source && part.start === end) pre.append(part.text);
      else pre.textContent = part.text;
      if (pre.textContent.length > KEEP) pre.textContent = pre.textContent.slice(-KEEP / 2);
      ({ source, end } = part);
      element.querySelector(".log-source").textContent = part.title;
      props.value = { source, end };
      if (follow.checked) toBottom();
    }

    follow.addEventListener("change", () => {
      if (follow.checked) toBottom();
    });
    pre.addEventListener("wheel", (event) => {
      if (event.deltaY < 0) follow.checked = false;
    });
    watch("value", draw);
    draw();
  }

  Object.assign(window.slimscope, { logView });
})();
