/* Gradio's controls, where they leave gaps: by keyboard, and where their lists open. */
(() => {
  /* A list handles its keys late: after Tab has left it, it would open again and stay open. And a
     long one would catch the focus and take it along when it closes. */
  window.addEventListener(
    "keydown",
    (event) => {
      const input =
        event.key === "Tab" && event.target.closest(".secondary-wrap [role='combobox']");
      if (!input) return;
      event.stopPropagation();
      const list = document.getElementById(input.getAttribute("aria-controls"));
      if (list) list.tabIndex = -1;
    },
    { capture: true },
  );

  /* Every radio button of a group has a name of its own, so arrow keys would not move between them
     and each would be a stop of the Tab key. Gradio names the taken ones anew at every choice. */
  function grouped(input) {
    const group = input.matches("input[type='radio']") && input.closest("fieldset[id]");
    if (!group || input.name === group.id) return null;
    const radios = [...group.querySelectorAll("input[type='radio']")];
    const taken = radios.find((each) => each.checked);
    for (const each of radios) each.name = group.id;
    if (taken) taken.checked = true;
    return taken;
  }

  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key.startsWith("Arrow")) grouped(event.target);
    },
    { capture: true },
  );

  /* A list opens where there is more room, so in the lower half of a page upwards, over what stands
     there. It opens downwards where it fits. Gradio places it anew whenever the page scrolls. */
  const FITS = 240,
    GAP = 4; // px
  function openBelow(block, field) {
    const list = block.querySelector(".options");
    if (!list || !parseFloat(list.style.bottom)) return;
    const { bottom } = field.getBoundingClientRect(),
      room = window.innerHeight - bottom - 3 * GAP;
    if (room < Math.min(FITS, list.firstElementChild.scrollHeight)) return;
    Object.assign(list.style, { top: `${bottom + GAP}px`, bottom: "auto", maxHeight: `${room}px` });
  }

  const placed = new WeakSet(); // fields whose lists are watched
  document.addEventListener("focusin", (event) => {
    const field = event.target.closest(".secondary-wrap")?.closest(".wrap");
    const block = field?.closest(".block");
    if (!block) return;
    openBelow(block, field); // the list may be there already
    if (placed.has(field)) return;
    placed.add(field);
    const options = {
      childList: true,
      subtree: true,
      attributes: true,
      attributeFilter: ["style"],
    };
    new MutationObserver(() => openBelow(block, field)).observe(block, options);
  });

  /* A button that presses another one again and again, until it is pressed once more or the page is
     out of sight. Each step waits for a moment, so that the one before is drawn. */
  const STEP_MS = 900;
  let playing = 0;
  function play(own, next) {
    const button = document.getElementById(own);
    const stop = () => {
      clearInterval(playing);
      playing = 0;
      button.textContent = "Play";
      button.setAttribute("aria-pressed", "false");
    };
    if (playing) return stop();
    button.textContent = "Pause";
    button.setAttribute("aria-pressed", "true");
    const step = () => (document.hidden ? stop() : document.getElementById(next)?.click());
    step();
    playing = setInterval(step, STEP_MS);
  }
  Object.assign(window.slimscope, { play });

  document.addEventListener("focusin", (event) => {
    const taken = grouped(event.target);
    if (taken && event.target !== taken && !event.target.matches(":hover")) taken.focus();
  });
})();
