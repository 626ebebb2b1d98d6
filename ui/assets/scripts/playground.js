/* The playground: answers grow while they are written, an example is sent by a click. The server
   draws the conversation; this adds the new tokens, and asks for another drawing at the end. */
(() => {
  const EVERY = 120; // ms
  let followed = null;

  const board = () => document.getElementById("playground-board");
  const turns = () => board()?.querySelector("[data-live]");
  const sections = (run) =>
    [...(board()?.querySelectorAll(`[data-testid="turn-${run}"] section[data-side]`) || [])]
      .sort((one, other) => one.dataset.side - other.dataset.side);
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  /* Whether the end of the page is in sight, so that it should stay there. */
  const atEnd = () => window.innerHeight + window.scrollY > document.body.scrollHeight - 200;

  function show(section, side, now) {
    const status = section.querySelector(".waits");
    if (status.dataset.html !== side.status) {
      status.innerHTML = status.dataset.html = side.status;
    }
    const bar = status.querySelector("progress");
    if (bar) bar.value = Math.min(0.97, (now - bar.dataset.since) / 1000 / bar.dataset.about);
    section.querySelector(".facts-line").textContent = side.facts;
    const strip = section.querySelector(".strip");
    if (side.after === 0 && section.dataset.passes !== "0") strip.textContent = "";
    else if (String(side.after) !== section.dataset.passes) return; // drawn anew meanwhile
    if (side.html) strip.insertAdjacentHTML("beforeend", side.html);
    section.dataset.passes = side.passes;
  }

  async function follow(run) {
    while (turns()?.dataset.live === run) {
      const at = sections(run).map((each) => each.dataset.passes).join(",");
      const answer = await (await fetch(`slimscope/answers?run=${run}&at=${at}`, { cache: "no-store" })).json();
      const end = atEnd();
      for (const section of sections(run)) {
        const side = answer.sides?.find((each) => each.side === Number(section.dataset.side));
        if (side) show(section, side, answer.now);
      }
      if (end) window.scrollTo({ top: document.body.scrollHeight });
      if (answer.over) {
        board().querySelector(".redraw")?.click();
        return pause(1000);
      }
      await pause(document.hidden ? 2000 : EVERY);
    }
  }

  async function look() {
    const run = turns()?.dataset.live;
    if (!run || run === followed) return;
    followed = run;
    try {
      await follow(run);
    } catch {
      await pause(2000); // the status strip says that the server does not answer
    } finally {
      followed = null;
    }
  }

  /* As if a person had written it. */
  function enter(field, text) {
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener("click", (event) => {
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
    } catch { /* a browser that keeps nothing */ }
  }

  setInterval(() => { look(); remember(); }, 100);
})();
