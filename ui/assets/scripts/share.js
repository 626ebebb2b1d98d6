/* Share: the link of this view, its QR code, and what a presentation goes through. In a frame of the
   presentation a page shows itself larger, without what only its reader needs. */
(() => {
  const VIEWS = "slimscope-views";
  const api = window.slimscope;

  try {
    const framed =
      window.parent !== window && window.parent.location.pathname.includes("/slimscope/");
    if (framed) {
      document.documentElement.classList.add("presenting");
      setInterval(whole, 250);
      document.addEventListener("keydown", (event) => {
        // the frame has the focus after a click
        if (event.key === "Escape" && !document.fullscreenElement)
          window.parent.document.getElementById("leave")?.click();
      });
    }
  } catch {
    /* another site frames us: a Space */
  }

  /* On a wide screen a card is shown once all of it fits: none looks over the lower edge. */
  function whole() {
    for (const card of document.querySelectorAll(".card")) {
      const { top, bottom } = card.getBoundingClientRect(),
        fits = bottom <= window.innerHeight + 1 || bottom - top > window.innerHeight;
      card.classList.toggle("beyond", window.innerWidth > 640 && top > 0 && !fits);
    }
  }

  const here = () => `${location.pathname.split("/").pop()}${location.search}` || "./";
  const views = () => JSON.parse(localStorage.getItem(VIEWS) || "[]");
  const present = () => {
    location.href = `slimscope/present?view=${encodeURIComponent(here())}`;
  };
  const fields = new URLSearchParams(location.search);
  if (fields.has("present")) {
    // a link that presents what it shows
    fields.delete("present");
    history.replaceState(
      history.state,
      "",
      `${location.pathname}${fields.size ? `?${fields}` : ""}`,
    );
    present();
  }

  function views_said(dialog) {
    const count = views().length;
    dialog.querySelector(".views").textContent = count
      ? `The presentation goes through ${count} chosen view${count === 1 ? "" : "s"}.`
      : "No view is chosen: a presentation goes through Home, Weights, Quantisation and Benchmark.";
    dialog.querySelector(".forget").hidden = !count;
  }

  async function share() {
    api.pin?.();
    const dialog = api.dialog(
      "share",
      `<h2>Share this view</h2><p class="link"><input readonly aria-label="Link"><button class="copy">Copy</button></p>
      <p class="quiet reach"></p><img class="qr" alt="QR code of the link"><h2>Present</h2><p class="quiet views"></p>
      <p class="actions"><button class="add">Add this view</button><button class="forget">Forget all views</button><button class="start primary">Present (p)</button><button class="close">Close</button></p>`,
    );
    dialog.ariaLabel = "Share this view";
    const part = (name) => dialog.querySelector(name);
    part(".close").onclick = () => dialog.close();
    part(".start").onclick = present;
    part(".add").onclick = () => {
      localStorage.setItem(VIEWS, JSON.stringify([...new Set([...views(), here()])]));
      views_said(dialog);
    };
    part(".forget").onclick = () => {
      localStorage.removeItem(VIEWS);
      views_said(dialog);
    };
    dialog.onclose = () => dialog.remove();
    views_said(dialog);
    dialog.showModal();
    const { base } = await (await fetch("slimscope/share")).json();
    const link = new URL(here(), base || location.href).href;
    part("input").value = link;
    part(".reach").textContent = base
      ? ""
      : "This link works on this computer only: the dashboard does not listen on the network. To share it, start it with slimscope serve --host 0.0.0.0.";
    if (!base)
      part(".qr").remove(); // a phone would look for itself
    else part(".qr").src = `slimscope/qr?address=${encodeURIComponent(here())}`;
    part(".copy").onclick = async () => {
      part("input").select();
      try {
        await navigator.clipboard.writeText(link);
        part(".copy").textContent = "Copied";
      } catch {
        part(".copy").textContent = "Press Ctrl+C";
      }
    };
  }

  /* One step on, for a presentation that plays: the next stage, or the next step of training. False
     where nothing moves or all has been shown. */
  function advance() {
    if (api.nextStop?.()) return true;
    const slider = document.querySelector("#quant-step input[type=range]");
    if (!slider || Number(slider.value) >= Number(slider.max)) return false;
    slider.value = String(Number(slider.value) + Number(slider.step || 1));
    for (const kind of ["input", "change", "pointerup"])
      slider.dispatchEvent(new Event(kind, { bubbles: true }));
    return true;
  }

  Object.assign(api, { share, present, advance });
})();
