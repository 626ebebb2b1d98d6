/* The playground: answers stream in token by token, an example is sent by a click. The server draws
   the conversation; a section with `data-begin` is one this page has answered. */
(() => {
  const writing = new Map(); // query of an answer -> its strip, what it waits for, how to stop it

  const board = () => document.getElementById("playground-board");
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  /* Whether the end of the page is in sight, so that it should stay there. */
  const atEnd = () => window.innerHeight + window.scrollY > document.body.scrollHeight - 200;

  function add(answer, row) {
    const end = atEnd();
    for (const [text, head] of row.tokens) {
      const span = document.createElement("span");
      span.textContent = text;
      if (head) span.className = head < 0 ? "head-looked" : `head-${Math.min(head, 6)}`;
      answer.strip.append(span);
    }
    answer.tokens += row.tokens.length;
    if (row.rejected[0]?.trim()) {
      const vain = document.createElement("s");
      vain.textContent = row.rejected[0];
      vain.ariaHidden = "true";
      answer.strip.append(vain);
    }
    answer.waits = null;
    if (end) window.scrollTo({ top: document.body.scrollHeight });
  }

  function wait(answer, what, about) {
    answer.waits = { what, about, since: performance.now() };
  }

  /* Puts what has come into the section, which may have been drawn anew. */
  function show(query, answer) {
    const section = board()?.querySelector(`[data-begin="${query}"]`);
    if (!section) return;
    const strip = section.querySelector(".strip");
    if (strip !== answer.strip) strip.replaceWith(answer.strip);
    section.querySelector(".facts-line").textContent = answer.tokens
      ? `${answer.tokens} tokens`
      : "";
    const place = section.querySelector(".waits"),
      { what, about, since } = answer.waits || {};
    const said = what && `${what}${about ? ` (about ${Math.max(1, Math.round(about))} s)` : "…"}`;
    if (place.dataset.said !== (said || "")) {
      place.dataset.said = said || "";
      place.replaceChildren();
      if (!said) return;
      const line = Object.assign(document.createElement("p"), {
        className: "quiet",
        role: "status",
      });
      line.append(said);
      if (about) line.append(Object.assign(document.createElement("progress"), { max: 1 }));
      place.append(line);
    }
    const bar = place.querySelector("progress");
    if (bar) bar.value = Math.min(0.97, (performance.now() - since) / 1000 / about);
  }

  /* Has it answered; who is refused because others are before waits, and asks again. */
  async function begin(query) {
    const stop = new AbortController();
    const answer = { strip: document.createElement("p"), tokens: 0, waits: null, stop };
    answer.strip.className = "strip";
    writing.set(query, answer);
    wait(answer, "Starting", 0);
    try {
      for (;;) {
        const response = await fetch(`slimscope/answer?${query}`, {
          method: "POST",
          signal: stop.signal,
        });
        if (response.status === 429) {
          const { error } = await response.json(),
            seconds = Number(response.headers.get("retry-after")) || 5;
          wait(answer, error.message, seconds);
          await pause(1000 * seconds);
          if (!stop.signal.aborted) continue;
        } else if (response.ok)
          await window.slimscope.events(response, (row) => {
            if (row.tokens) add(answer, row);
            else if (row.waits) wait(answer, row.waits, row.about);
          });
        break;
      }
    } catch {
      /* stopped, or the server has gone, as the status strip says */
    }
    await pause(stop.signal.aborted ? 400 : 0); // until it is stored
    answer.over = true;
    if ([...writing.values()].every((each) => each.over)) {
      board()?.querySelector(".redraw")?.click();
      await pause(1500);
      writing.clear();
    }
  }

  function look() {
    for (const section of board()?.querySelectorAll("[data-begin]") || []) {
      if (!writing.has(section.dataset.begin)) begin(section.dataset.begin);
    }
    for (const [query, answer] of writing) show(query, answer);
  }

  /* As if a person had written it. */
  function enter(field, text) {
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest?.('#playground-board [data-do="stop"]')) {
      for (const answer of writing.values()) answer.stop.abort();
    }
    const example = event.target.closest?.("[data-example]");
    const box = example && document.querySelector("#playground-prompt textarea");
    if (!box) return;
    enter(box, example.dataset.example);
    box.focus();
    setTimeout(() => document.querySelector("#playground-prompt .submit-button")?.click(), 50);
  });

  /* What a guest calls themselves is kept by their browser. */
  function remember() {
    const field = document.querySelector("#playground-name input, #playground-name textarea");
    if (!field || field.dataset.known) return;
    field.dataset.known = "yes";
    try {
      const name = localStorage.getItem("slimscope-name");
      if (name) enter(field, name);
      field.addEventListener("change", () => localStorage.setItem("slimscope-name", field.value));
    } catch {
      /* a browser that keeps nothing */
    }
  }

  setInterval(() => {
    look();
    remember();
  }, 100);
})();
