/* Share: the link of this view with its QR code, and the stories that may take it in. The editor of a
   story. */
(() => {
  const { address, dialog, find, findAll } = window.slimscope;
  const FILE_BYTES = 64e6;

  try {
    const { parent } = window;
    if (parent !== window && parent.location.pathname.includes("/slimscope/"))
      document.documentElement.classList.add("presenting");
  } catch {
    /* another site frames us: a Space */
  }

  /** The page and its state, with what it shows by default. */
  function here() {
    window.slimscope.pin?.();
    const shown = document.querySelector("[data-pin]");
    if (shown instanceof HTMLElement) address(JSON.parse(shown.dataset.pin ?? "{}"));
    const fields = new URLSearchParams(location.search);
    return `${location.pathname.split("/").pop()}${fields.size ? `?${fields}` : ""}` || "./";
  }
  const present = () => {
    location.href = `slimscope/story?view=${encodeURIComponent(here())}`;
  };

  /* --- share ------------------------------------------------------------------------------- */

  /** @type {Slimscope["share"]} */
  async function share(chart = "") {
    const view = { address: here(), chart };
    const answer = await fetch(`slimscope/share?${new URLSearchParams(view)}`);
    const box = dialog("share", await answer.text());
    const close = () => {
      find(box, ".close").onclick = () => box.close();
    };
    window.slimscope.htmlPanel(
      box,
      () => {},
      async () => {
        const fields = Object.fromEntries(new FormData(find(box, "form", HTMLFormElement)));
        const body = JSON.stringify({
          ...fields,
          ...{ address: view.address, story: Number(fields.story) },
        });
        const headers = { "Content-Type": "application/json" };
        const added = await fetch("slimscope/share", { method: "POST", headers, body });
        box.innerHTML = await added.text();
        close();
      },
    );
    box.ariaLabel = "Share this view";
    box.onsubmit = (event) => event.preventDefault();
    box.onclose = () => box.remove();
    close();
    box.showModal();
  }

  /* --- editor ------------------------------------------------------------------------------ */

  /**
   * The views of a story are dragged by their handle; its buttons move them, too, and keep the focus.
   * @type {Slimscope["story"]}
   */
  function story(element, acted) {
    /** @type {HTMLElement | null} */
    let dragged = null;
    let start = 0;
    let focus = "";
    const rows = () => findAll(element, ".story-views li");
    const rowAt = (/** @type {Event} */ event) =>
      event.target instanceof Element ? event.target.closest(".story-views li") : null;

    element.addEventListener("dragstart", (event) => {
      dragged = /** @type {HTMLElement | null} */ (rowAt(event));
      dragged?.classList.add("dragged");
      start = dragged ? rows().indexOf(dragged) : 0;
    });
    element.addEventListener("dragover", (event) => {
      const row = rowAt(event);
      if (!dragged || !row) return;
      event.preventDefault();
      const { top, height } = row.getBoundingClientRect();
      if (event.clientY > top + height / 2) row.after(dragged);
      else row.before(dragged);
    });
    element.addEventListener("drop", (event) => event.preventDefault());
    element.addEventListener("dragend", () => {
      if (!dragged) return;
      const { run, file } = dragged.dataset;
      dragged.classList.remove("dragged");
      acted({ do: "move", run, file, text: String(rows().indexOf(dragged) - start) });
      dragged = null;
    });
    element.addEventListener("click", ({ target }) => {
      focus = target instanceof HTMLElement ? (target.dataset.focus ?? "") : "";
    });
    new MutationObserver(() => {
      const button = focus && element.querySelector(`[data-focus="${focus}"]`);
      if (button instanceof HTMLElement) button.focus();
      focus = "";
    }).observe(element, { childList: true, subtree: true, attributes: true });
    element.addEventListener("change", async ({ target }) => {
      if (!(target instanceof HTMLInputElement) || !target.files?.[0]) return;
      acted({ do: "import", text: await storyFile(target.files[0]) });
      target.value = "";
    });
  }

  /** The part of an exported story that is imported. @param {File} file */
  async function storyFile(file) {
    if (file.size > FILE_BYTES) return "";
    const text = await file.text();
    const page = new DOMParser().parseFromString(text, "text/html");
    return page.getElementById("story-file")?.textContent ?? text;
  }

  /**
   * Goes to the address it is given.
   * @type {Slimscope["leave"]}
   */
  function leave(props, watch) {
    watch("value", () => {
      if (props.value) window.location.href = props.value;
    });
  }

  Object.assign(window.slimscope, { share, present, story, leave });
})();
