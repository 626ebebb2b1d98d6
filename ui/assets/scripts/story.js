/* The share dialog (link of the view, QR code, stories to add it to), and the editor of a story. */
(() => {
  const { address, dialog, find } = window.slimscope;
  const FILE_BYTES = 64e6;

  try {
    const { parent } = window;
    if (parent !== window && parent.location.pathname.includes("/slimscope/"))
      document.documentElement.classList.add("presenting");
  } catch {
    /* framed by another site, as in a Space */
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
   * A file that is chosen is imported as a story.
   * @type {Slimscope["story"]}
   */
  function story(element, acted) {
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
   * Navigates to an address.
   * @type {Slimscope["leave"]}
   */
  function leave(props, watch) {
    watch("value", () => {
      if (props.value) window.location.href = props.value;
    });
  }

  Object.assign(window.slimscope, { share, present, story, leave });
})();
