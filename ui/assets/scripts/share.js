/* Share: the link of this view, its QR code, and the views of a presentation. In a frame of the
   presentation a page shows itself larger, without what only its reader needs. */
(() => {
  const { dialog, find, findAll } = window.slimscope;
  const VIEWS_KEY = "slimscope-views";
  const FIT_MS = 250;
  const PHONE_PX = 640;

  try {
    const { parent } = window;
    if (parent !== window && parent.location.pathname.includes("/slimscope/")) {
      document.documentElement.classList.add("presenting");
      setInterval(hideCutCards, FIT_MS);
      document.addEventListener("keydown", (event) => {
        // the frame has the focus after a click
        if (event.key === "Escape" && !document.fullscreenElement)
          parent.document.getElementById("leave")?.click();
      });
    }
  } catch {
    /* another site frames us: a Space */
  }

  /* On a wide screen a card is shown once all of it fits: none looks over the lower edge. */
  function hideCutCards() {
    for (const card of findAll(document, ".card")) {
      const { top, bottom } = card.getBoundingClientRect();
      const fits = bottom <= window.innerHeight + 1 || bottom - top > window.innerHeight;
      card.classList.toggle("beyond", window.innerWidth > PHONE_PX && top > 0 && !fits);
    }
  }

  const here = () => `${location.pathname.split("/").pop()}${location.search}` || "./";
  /** @returns {string[]} */
  const views = () => JSON.parse(localStorage.getItem(VIEWS_KEY) ?? "[]");
  const present = () => {
    location.href = `slimscope/present?view=${encodeURIComponent(here())}`;
  };
  const fields = new URLSearchParams(location.search);
  if (fields.has("present")) {
    // a link that presents what it shows
    fields.delete("present");
    const query = fields.size ? `?${fields}` : "";
    history.replaceState(history.state, "", `${location.pathname}${query}`);
    present();
  }

  /** @param {HTMLElement} box */
  function showViews(box) {
    const count = views().length;
    find(box, ".views").textContent = count
      ? `The presentation goes through ${count} chosen view${count === 1 ? "" : "s"}.`
      : "No view is chosen: a presentation goes through Home, Weights, Quantization and Benchmark.";
    find(box, ".forget").hidden = !count;
  }

  /** Fills in the link of this view and its QR code. @param {HTMLElement} box */
  async function showLink(box) {
    /** @type {{base: string}} */
    const { base } = await (await fetch("slimscope/share")).json();
    const link = new URL(here(), base || location.href).href;
    const field = find(box, "input", HTMLInputElement);
    const code = find(box, ".qr", HTMLImageElement);
    const button = find(box, ".copy");
    field.value = link;
    find(box, ".reach").textContent = base
      ? ""
      : "This link works on this computer only: the dashboard does not listen on the network. To share it, start it with slimscope serve --host 0.0.0.0.";
    if (base) code.src = `slimscope/qr?address=${encodeURIComponent(here())}`;
    else code.remove(); // a phone would look for itself
    button.onclick = async () => {
      field.select();
      try {
        await navigator.clipboard.writeText(link);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Press Ctrl+C";
      }
    };
  }

  async function share() {
    window.slimscope.pin?.();
    const box = dialog(
      "share",
      `<h2>Share this view</h2><p class="link"><input readonly aria-label="Link"><button class="copy">Copy</button></p>
      <p class="quiet reach"></p><img class="qr" alt="QR code of the link"><h2>Present</h2><p class="quiet views"></p>
      <p class="actions"><button class="add">Add this view</button><button class="forget">Forget all views</button><button class="start primary">Present (p)</button><button class="close">Close</button></p>`,
    );
    box.ariaLabel = "Share this view";
    find(box, ".close").onclick = () => box.close();
    find(box, ".start").onclick = present;
    find(box, ".add").onclick = () => {
      localStorage.setItem(VIEWS_KEY, JSON.stringify([...new Set([...views(), here()])]));
      showViews(box);
    };
    find(box, ".forget").onclick = () => {
      localStorage.removeItem(VIEWS_KEY);
      showViews(box);
    };
    box.onclose = () => box.remove();
    showViews(box);
    box.showModal();
    await showLink(box);
  }

  /* One step of a presentation that plays: the next stage. False where nothing moves or all has been shown. */
  const advance = () => Boolean(window.slimscope.nextStop?.());

  Object.assign(window.slimscope, { share, present, advance });
})();
