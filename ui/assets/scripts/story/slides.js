/* The slides of a story: as a document, as a full-screen presentation, or on a phone that follows. The page
   that presents and the exported file hold this script. */
(() => {
  const POLL_MS = 1500;
  const TYPE_PX = 1100; // width of a screen at which charts have their usual type
  const DOCUMENT_PX = 400; // height of a chart

  /** @type {(selector: string) => HTMLElement} */
  const one = (selector) => /** @type {HTMLElement} */ (document.querySelector(selector));
  /** @type {(selector: string) => HTMLElement[]} */
  const all = (selector) =>
    [...document.querySelectorAll(selector)].map((e) => /** @type {any} */ (e));
  /** @type {(id: string) => any} */
  const json = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "{}");

  /**
   * `story`: number, 0 for a single view; `follows`: code of the presentation to follow; `presents`: begin
   * with a presentation; `hosts`: phones may be invited. A file has figures only.
   * @type {{figures: Record<string, PlotlyFigure>, story?: number, follows?: string, presents?: boolean,
   *   hosts?: boolean, at?: number}}
   */
  const data = json("story-data");
  const templates = json("story-templates");
  const sections = all("section");
  const root = document.documentElement;
  const home = new URL("../", location.href);
  let index = -1;
  let code = "";
  let published = "";

  /* --- drawing ----------------------------------------------------------------------------- */

  const dark = matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    let chosen = "";
    try {
      chosen = localStorage.getItem("slimscope-theme") ?? "";
    } catch {
      /* storage is off */
    }
    root.dataset.theme = chosen || (dark.matches ? "dark" : "light");
  }

  /** Draws a chart into the box around it, with larger type on larger screens. @param {HTMLElement} figure */
  function draw(figure) {
    const box = /** @type {HTMLElement} */ (figure.parentElement);
    const scale = index < 0 ? 1 : Math.min(2, Math.max(1, innerWidth / TYPE_PX));
    const css = getComputedStyle(root);
    const source = data.figures[figure.dataset.figure ?? ""];
    const isDark = root.dataset.theme === "dark";
    const shaded = window.slimscopeShade(source, templates, isDark, css);
    const width = box.clientWidth / scale;
    const height =
      (index < 0 ? DOCUMENT_PX + (source.layout.meta?.more ?? 0) : box.clientHeight) / scale;
    if (!width || !height) return;
    figure.style.transform = `scale(${scale})`;
    window.Plotly.react(
      figure,
      shaded.data,
      { ...shaded.layout, width, height },
      { displaylogo: false, displayModeBar: false, showSendToCloud: false, plotlyServerURL: "" },
    );
  }

  /** Scales a table to its box. @param {HTMLElement} table */
  function fit(table) {
    const box = /** @type {HTMLElement} */ (table.parentElement);
    table.style.zoom = "1";
    if (index < 0) return;
    const fits = Math.min(
      box.clientWidth / table.offsetWidth,
      box.clientHeight / table.offsetHeight,
    );
    table.style.zoom = String(Math.max(0.5, Math.min(2, fits)));
  }

  function drawAll() {
    const shown = index < 0 ? document : sections[index];
    for (const figure of shown.querySelectorAll(".figure"))
      draw(/** @type {HTMLElement} */ (figure));
    for (const table of shown.querySelectorAll("table")) fit(table);
  }

  /* --- presenting -------------------------------------------------------------------------- */

  /** Frame of the view, if it is a whole page. */
  const frame = () =>
    /** @type {HTMLIFrameElement | null} */ (sections[index]?.querySelector("iframe"));

  /** Opens a live page; a page that can restore a state is not loaded again. @type {(page: HTMLIFrameElement, url: URL) => void} */
  function open(page, url) {
    const shown = page.contentWindow;
    if (shown?.slimscope?.back && shown.location.pathname === url.pathname) {
      shown.history.replaceState(null, "", url);
      if (shown.slimscope.back() !== false) return;
    }
    page.src = url.href;
    page.onload = () => page.contentWindow?.addEventListener("keydown", clicked);
  }

  /** Shows one view; -1 shows all as a document. @param {number} to @param {string} [address] of its page */
  function show(to, address) {
    index = Math.min(to, sections.length - 1);
    root.classList.toggle("presenting", index >= 0);
    sections.forEach((section, i) => section.classList.toggle("shown", i === index));
    one("output").textContent = `${index + 1} of ${sections.length}`;
    const page = frame();
    const asked = address ?? page?.dataset.address;
    if (page && asked !== undefined && page.dataset.shown !== asked) {
      page.dataset.shown = asked;
      open(page, new URL(asked || "./", home));
    }
    drawAll();
    publish();
    if (!data.story || data.follows || index < 0) return;
    const here = new URL(location.href);
    here.searchParams.set("at", String(index)); // a reload, or a copied link, shows the same
    history.replaceState(null, "", here);
  }

  const step = (/** @type {number} */ by) =>
    show(Math.max(0, Math.min(sections.length - 1, index + by)));
  const full = () =>
    document.fullscreenElement
      ? document.exitFullscreen()
      : root.requestFullscreen().catch(() => {});
  function leave() {
    const to = one("[data-do=leave]").dataset.leave;
    if (to) location.href = new URL(to, home).href;
    else show(-1);
  }

  /** @type {Record<string, () => void>} */
  const actions = {
    back: () => step(-1),
    next: () => step(1),
    first: () => show(0),
    last: () => show(sections.length - 1),
    blank: () => root.classList.toggle("blank"),
    present: () => show(0),
    full,
    leave,
    invite,
  };
  /** @type {Record<string, string>} */
  const clicker = { PageUp: "back", PageDown: "next", Escape: "leave" }; // also where a live page has the focus
  /** @type {Record<string, string>} */
  const keys = {
    ...clicker,
    ArrowLeft: "back",
    ArrowUp: "back",
    Backspace: "back",
    ArrowRight: "next",
    ArrowDown: "next",
    " ": "next",
    Enter: "next",
    Home: "first",
    End: "last",
    b: "blank",
    ".": "blank",
    f: "full",
  };

  /** @param {KeyboardEvent} event @param {Record<string, string>} known */
  function pressed(event, known) {
    const name = known[event.key];
    const isBusy =
      event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]");
    const isOnButton = event.target instanceof HTMLButtonElement && " Enter".includes(event.key);
    if (!name || isBusy || isOnButton || index < 0 || (data.follows && name !== "leave")) return;
    event.preventDefault();
    actions[name]();
  }
  const clicked = (/** @type {KeyboardEvent} */ event) => pressed(event, clicker);

  /* --- following --------------------------------------------------------------------------- */

  /** Current address of a live page. */
  function shownAddress() {
    try {
      const { href } = /** @type {Window} */ (frame()?.contentWindow).location;
      return href.startsWith(home.href) ? href.slice(home.href.length) || "./" : "";
    } catch {
      return "";
    }
  }

  /** Sends the view to phones, if there is a code or `isNew`. @param {boolean} [isNew] */
  async function publish(isNew) {
    const body = JSON.stringify({ code, story: data.story, at: index, address: shownAddress() });
    if (!(code || isNew) || index < 0 || (body === published && !isNew)) return;
    published = body;
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch("presented", { method: "POST", headers, body });
    return answer.json();
  }

  async function invite() {
    const { code: told, base } = await publish(true);
    code = told;
    for (const name of ["b", "i"]) one(`dialog ${name}`).textContent = code;
    one("dialog span").textContent = `${base}slimscope/follow`;
    one(".reached").hidden = one("dialog img").hidden = !base;
    one(".unreached").hidden = Boolean(base);
    const address = encodeURIComponent(`slimscope/follow?code=${code}`);
    if (base) one("dialog img").setAttribute("src", `qr?address=${address}`);
    /** @type {HTMLDialogElement} */ (one("dialog")).showModal();
  }

  let followed = "";
  async function follow() {
    const output = one("output");
    try {
      const answer = await fetch(`presented?code=${data.follows}`, { cache: "no-store" });
      const text = await answer.text();
      if (!answer.ok) output.textContent = `Nothing is presented with the code ${data.follows}.`;
      else if (text !== followed) {
        const state = JSON.parse(text);
        if (state.story !== data.story) return location.reload();
        followed = text;
        show(state.at, state.address || undefined);
      }
    } catch {
      output.textContent = "No answer from the server.";
    }
    setTimeout(follow, POLL_MS);
  }

  /* --- start ------------------------------------------------------------------------------- */

  theme();
  root.classList.toggle("framed", window.parent !== window); // in the editor
  for (const button of all("[data-do]"))
    button.onclick = () => actions[button.dataset.do ?? ""]?.();
  one("[data-do=invite]").hidden = !data.hosts;
  document.addEventListener("keydown", (event) => pressed(event, keys));
  new ResizeObserver(drawAll).observe(root);
  dark.addEventListener("change", () => {
    theme();
    drawAll();
  });
  if (data.follows) {
    root.classList.add("following");
    show(Math.max(0, data.at ?? 0));
    follow();
  } else {
    show(data.presents ? Math.max(0, data.at ?? 0) : -1);
    setInterval(() => publish(), 700);
  }
})();
