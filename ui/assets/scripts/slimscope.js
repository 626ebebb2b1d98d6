/* Code of every page. Python calls `slimscope.NAME(...)` from its components; the other scripts of this folder
   extend `slimscope`, and types.d.ts lists all of it. */
window.slimscope = (() => {
  /* All pages are neighbors, so links need no <base>; with one, the gradients and clip paths of a
     chart would point to the address it was drawn at, and vanish when the address changes. */
  document.querySelector("base")?.remove();

  const THEME_KEY = "slimscope-theme";
  const NARROW_PX = 480; // narrower charts break long legends before their last part
  const PULSE_MS = 10000;
  const LIVE_PULSE_MS = 2000;
  const RETRY_MS = 3000;
  const WRITE_MS = 250;
  const SAME_STEP_MS = 1000; // changes of the address within it are one step of Back
  const PREFERS_DARK = "(prefers-color-scheme: dark)";

  /* --- elements ---------------------------------------------------------------------------- */

  /**
   * First element that matches a selector. Throws if there is none of this type.
   * @template {Element} [T=HTMLElement]
   * @param {ParentNode} root
   * @param {string} selector
   * @param {new () => T} [type]
   * @returns {T}
   */
  function find(root, selector, type) {
    const [element] = findAll(root, selector, type);
    if (!element) throw new Error(`No element matches ${selector}.`);
    return element;
  }

  /**
   * All elements of a type that match a selector.
   * @template {Element} [T=HTMLElement]
   * @param {ParentNode} root
   * @param {string} selector
   * @param {new () => T} [type]
   */
  function findAll(root, selector, type) {
    return [...root.querySelectorAll(selector)].filter((element) => isOf(element, type));
  }

  /**
   * Target of an event, or its closest ancestor that matches a selector.
   * @template {Element} [T=HTMLElement]
   * @param {Event} event
   * @param {string} selector
   * @param {new () => T} [type]
   */
  function closest({ target }, selector, type) {
    const element = target instanceof Element ? target.closest(selector) : null;
    return isOf(element, type) ? element : null;
  }

  /**
   * @template {Element} [T=HTMLElement]
   * @param {Element | null} element
   * @param {new () => T} [type]
   * @returns {element is T}
   */
  function isOf(element, type) {
    return element instanceof (type ?? HTMLElement);
  }

  /** @type {Slimscope["create"]} */
  const create = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);

  /* --- the frame ------------------------------------------------------------------------- */

  const isDark = () => document.body.classList.contains("dark");
  const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  function prefersDark() {
    const chosen = localStorage.getItem(THEME_KEY);
    return chosen ? chosen === "dark" : matchMedia(PREFERS_DARK).matches;
  }

  function applyTheme() {
    if (isDark() !== prefersDark()) document.body.classList.toggle("dark", prefersDark());
    const button = document.getElementById("frame-theme");
    if (!button) return;
    button.setAttribute("aria-pressed", String(isDark()));
    button.setAttribute("aria-label", isDark() ? "Switch to light mode" : "Switch to dark mode");
  }

  function applyTitle() {
    const heading = document.querySelector("h1");
    const title = heading ? `${heading.textContent.trim()} · Slimscope` : "Slimscope";
    if (document.title !== title) document.title = title;
  }

  /** @param {HTMLElement} element */
  function header(element) {
    find(element, "#frame-theme").onclick = () => {
      localStorage.setItem(THEME_KEY, isDark() ? "light" : "dark");
      applyTheme();
    };
    find(element, "#frame-skip").onclick = () => {
      const main = find(document, "#main");
      main.tabIndex = -1;
      main.focus();
    };
    applyTheme();
    applyTitle();
    new MutationObserver(applyTheme).observe(document.body, { attributeFilter: ["class"] });
    matchMedia(PREFERS_DARK).addEventListener("change", applyTheme);
    const everything = { childList: true, characterData: true, subtree: true };
    new MutationObserver(applyTitle).observe(document.documentElement, everything);
  }

  /* --- the status line --------------------------------------------------------------------- */

  const mayNotify = () => window.isSecureContext && window.Notification?.permission === "granted";

  /** @param {string} run */
  async function notify(run) {
    /** @type {{state: string, name: string | null}} */
    const job = await (await fetch(`slimscope/api/runs/${run}`)).json();
    const note = new Notification(`${run} has ${job.state}`, { body: job.name ?? "", tag: run });
    note.onclick = () => {
      window.focus();
      window.location.href = `run?id=${run}`;
    };
  }

  /**
   * Polls the server for the status line; `changed` is called when other data has changed.
   * @param {HTMLElement} element
   * @param {() => void} changed
   */
  function pulse(element, changed) {
    const line = find(element, ".status-line");
    let timer = 0;
    let lastAnswer = new Date();
    /** @type {Pulse | null} */
    let before = null;

    /** @param {Pulse} answer */
    function take(answer) {
      const html = answer.html.trim();
      if (line.innerHTML !== html) line.innerHTML = html;
      const badge = document.getElementById("frame-badge");
      if (badge && badge.innerHTML !== answer.badge) badge.innerHTML = answer.badge;
      if (before && before.cursor !== answer.cursor) changed();
      const ended = (before?.runs ?? []).filter((run) => !answer.runs.includes(run));
      if (mayNotify()) ended.forEach(notify);
      before = answer;
    }

    async function poll() {
      clearTimeout(timer);
      if (document.hidden && !(mayNotify() && before?.runs.length)) return;
      let wait_ms = PULSE_MS;
      if (slimscope.busy) return void (timer = setTimeout(poll, RETRY_MS));
      try {
        /** @type {Pulse} */
        const answer = await (await fetch("slimscope/pulse", { cache: "no-store" })).json();
        if (before && before.pages !== answer.pages) {
          line.innerHTML =
            '<span class="problem">The dashboard has changed since this page was opened. <a href="">Reload the page</a></span>';
          return; // its events would be refused
        }
        lastAnswer = new Date();
        line.dataset.heard = "true";
        if (answer.live && !document.hidden) wait_ms = LIVE_PULSE_MS;
        take(answer);
      } catch {
        line.textContent = `No answer from the server. Last update ${lastAnswer.toLocaleTimeString()}.`;
        wait_ms = RETRY_MS;
      }
      timer = setTimeout(poll, wait_ms);
    }
    document.addEventListener("visibilitychange", poll);
    slimscope.look = poll;
    poll();
  }

  /* --- the address ------------------------------------------------------------------------- */

  /* Gradio also selects tabs by itself while a page is built; only a person's choice counts. */
  let touched = false;
  for (const kind of ["pointerdown", "keydown"]) {
    const touch = () => {
      touched = true;
    };
    document.addEventListener(kind, touch, { capture: true });
  }

  /** @param {string} name */
  function tab(name) {
    if (touched) address({ tab: name });
  }

  /* Browsers limit address changes per second, so a moving value is written once it rests. */
  /** @type {Record<string, unknown>} */
  let unwritten = {};
  let writeTimer = 0;
  let lastPush_ms = -SAME_STEP_MS;

  /** @type {Slimscope["address"]} */
  function address(fields, moving = false) {
    Object.assign(unwritten, fields);
    clearTimeout(writeTimer);
    if (moving) writeTimer = setTimeout(write, WRITE_MS);
    else write();
  }

  function write() {
    const url = new URL(window.location.href);
    for (const [name, value] of Object.entries(unwritten)) {
      const text = Array.isArray(value) ? value.join(",") : String(value ?? "");
      if (text) url.searchParams.set(name, text);
      else url.searchParams.delete(name);
    }
    unwritten = {};
    clearTimeout(writeTimer);
    if (url.href === window.location.href) return;
    const isStep = touched && performance.now() - lastPush_ms > SAME_STEP_MS;
    if (isStep) lastPush_ms = performance.now();
    history[isStep ? "pushState" : "replaceState"](history.state, "", url);
  }
  window.addEventListener("pagehide", write);

  /* Back restores the previous view: the page is redrawn for its address. */
  window.addEventListener("popstate", () => {
    if (!slimscope.back?.()) window.location.reload();
  });

  /* --- charts ---------------------------------------------------------------------------- */

  const typeScale = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;

  /**
   * Figure in the color mode of the page, with larger text on wide screens.
   * @param {PlotlyFigure} figure
   */
  function shade(figure) {
    const css = getComputedStyle(document.body);
    const shaded = window.slimscopeShade(figure, slimscope.templates, isDark(), css);
    const scale = typeScale();
    if (scale !== 1)
      shaded.layout.template = JSON.parse(JSON.stringify(shaded.layout.template), (key, value) =>
        key === "size" && typeof value === "number" ? Math.round(value * scale) : value,
      );
    return shaded;
  }

  /**
   * @param {ChartValue | undefined} value
   * @returns {value is PlotlyFigure}
   */
  const isFigure = (value) => typeof value === "object" && value !== null;

  /** A Plotly chart in an HTML component (`ui/widgets/panel.py`). */
  class Chart {
    Plotly = window.Plotly; // another script may replace the global
    isBound = false;

    /**
     * @param {HTMLElement} element
     * @param {GradioProps<ChartValue>} props
     */
    constructor(element, props) {
      this.props = props;
      this.box = find(element, ".plot");
      this.canvas = /** @type {PlotlyElement} */ (find(element, ".plot-canvas"));
      this.empty = find(element, ".plot-empty");
      this.reserved_px = parseFloat(this.box.style.minHeight);
    }

    get meta() {
      const { value } = this.props;
      return (isFigure(value) && value.layout.meta) || {};
    }

    get height_px() {
      const height = this.reserved_px + (this.meta.more ?? 0);
      if (!document.documentElement.classList.contains("presenting")) return height;
      return Math.max(height, Math.min(height * typeScale(), 0.42 * window.innerHeight));
    }

    async draw() {
      const { value } = this.props;
      const drawn = isFigure(value);
      this.empty.hidden = drawn || !value;
      this.canvas.style.visibility = drawn ? "visible" : "hidden";
      this.box.classList.toggle("loading", value === "");
      this.box.style.minHeight = `${this.height_px}px`;
      if (!drawn) {
        this.empty.textContent = value ?? "";
        return;
      }
      const figure = shade(value);
      if (this.canvas.clientWidth < NARROW_PX)
        for (const trace of figure.data) trace.name = trace.name?.replace(/ · (?=[^·]*$)/, "<br>");
      await this.Plotly.react(this.canvas, figure.data, figure.layout, {
        displaylogo: false,
        responsive: true,
        showSendToCloud: false,
        plotlyServerURL: "",
        displayModeBar: false, // drag zooms, a double click shows all again
      });
      this.describe();
      if (!this.isBound) this.bind();
    }

    /** Names the chart for screen readers. */
    describe() {
      const svg = this.canvas.querySelector("svg.main-svg");
      if (!svg) return;
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", this.box.dataset.label ?? "");
    }

    bind() {
      this.isBound = true;
      // not while hidden; at once, as Plots.resize waits, and a chart that is too tall covers what is below it
      new ResizeObserver(() => {
        if (this.box.offsetWidth) this.Plotly.relayout(this.canvas, { autosize: true });
      }).observe(this.box);
      new MutationObserver(() => this.draw()).observe(document.body, {
        attributeFilter: ["class"],
      });
    }
  }

  /** @type {Slimscope["plot"]} */
  function plot(element, props, watch) {
    const chart = new Chart(element, props);
    watch("value", () => chart.draw());
    chart.draw();
  }

  /* --- tables ---------------------------------------------------------------------------- */

  /**
   * A field of CSV, quoted where needed; a text that a spreadsheet would take for a formula gets an apostrophe.
   * @param {string} value
   */
  function csvField(value) {
    const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  /**
   * Saves a table as NAME.csv, with the exact numbers behind the rounded ones.
   * @type {Slimscope["saveTable"]}
   */
  function saveTable(source, name) {
    if (!source) return;
    const rows = [...source.rows].map((row) =>
      [...row.cells]
        .map((cell) => csvField(cell.dataset.value ?? cell.textContent.trim()))
        .join(","),
    );
    slimscope.save(`${name}.csv`, [rows.join("\n"), "\n"], "text/csv");
  }

  /**
   * A click on a button with data-csv="NAME" saves the table beside it.
   * @param {HTMLElement} element
   */
  function table(element) {
    element.addEventListener("click", (event) => {
      const name = closest(event, "[data-csv]")?.dataset.csv;
      if (name) saveTable(element.querySelector("table"), name);
    });
  }

  /* --- modules, figures, dialogs, streams ---------------------------------------------------- */

  /**
   * Modules are loaded by the page that uses them; those that draw a whole page already while Gradio starts.
   * @param {string} folder
   */
  function modules(folder) {
    slimscope.module = (/** @type {string} */ path) => import(`${folder}/${path}.js`);
    const page = location.pathname.split("/").pop() ?? "";
    if (["weights", "workbench"].includes(page))
      slimscope.module(`${page}/page`).then((module) => void module.ahead());
  }

  document.addEventListener("submit", (event) => {
    const form = closest(event, "[data-trace]");
    if (!form) return;
    event.preventDefault();
    slimscope.module("workbench/trace").then(({ traced }) => traced(form));
  });

  /**
   * Draws each figure with `data-NAME` once for its data; new data stops the old drawing, since both would write
   * into the same elements.
   * @type {Slimscope["figures"]}
   */
  function figures(name, draw) {
    /** @type {WeakMap<HTMLElement, {data?: string, stop: (() => void) | void}>} */
    const drawings = new WeakMap();
    const look = () => {
      for (const figure of findAll(document, `figure[data-${name}]`)) {
        const data = figure.dataset[name];
        const drawing = drawings.get(figure);
        if (drawing?.data === data) continue;
        drawing?.stop?.();
        drawings.set(figure, { data, stop: draw(figure) });
      }
    };
    const added = { childList: true, subtree: true };
    new MutationObserver(look).observe(document.documentElement, added);
    look();
  }

  /**
   * A dialog, not yet shown, outside of the panels: a redraw does not close it.
   * @type {Slimscope["dialog"]}
   */
  function dialog(className, html) {
    const element = create("dialog", { className: `ask ${className}`, innerHTML: html });
    document.body.append(element);
    return element;
  }

  /**
   * Calls `take` with each row of JSON that a response streams as server-sent events.
   * @type {Slimscope["events"]}
   */
  async function events(response, take) {
    if (!response.body) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) if (line.startsWith("data: ")) take(JSON.parse(line.slice(6)));
    }
  }

  const slimscope = /** @type {Slimscope} */ ({
    find,
    findAll,
    closest,
    create,
    header,
    pulse,
    address,
    tab,
    plot,
    table,
    saveTable,
    modules,
    still,
    figures,
    dialog,
    events,
    templates: {},
  });
  return slimscope;
})();
