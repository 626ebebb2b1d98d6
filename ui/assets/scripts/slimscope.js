/* Code of the pages in the browser. Python puts `slimscope.NAME(...)` into the components. */
window.slimscope = (() => {
  /* All pages are neighbours, so links need no <base>; with one, the gradients and clip paths of a
     chart would point to the address it was drawn at, and vanish when the address changes. */
  document.querySelector("base")?.remove();

  const THEME = "slimscope-theme";
  const dark = () => document.body.classList.contains("dark");
  const NARROW = 480; // pixels of a chart: the last part of a long legend goes to a line of its own

  /* --- the frame ------------------------------------------------------------------------- */

  function wanted() {
    const kept = localStorage.getItem(THEME);
    return kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function applyTheme() {
    if (dark() !== wanted()) document.body.classList.toggle("dark", wanted());
    const button = document.getElementById("frame-theme");
    if (button) {
      button.setAttribute("aria-pressed", String(dark()));
      button.textContent = dark() ? "Light" : "Dark";
      button.setAttribute("aria-label", dark() ? "Switch to light mode" : "Switch to dark mode");
    }
  }

  function applyTitle() {
    const heading = document.querySelector("h1");
    const title = heading ? `${heading.textContent.trim()} · Slimscope` : "Slimscope";
    if (document.title !== title) document.title = title;
  }

  function header(element) {
    element.querySelector("#frame-theme").onclick = () => {
      localStorage.setItem(THEME, dark() ? "light" : "dark");
      applyTheme();
    };
    element.querySelector("#frame-skip").onclick = () => {
      const main = document.getElementById("main");
      main.tabIndex = -1;
      main.focus();
    };
    element
      .querySelector("#frame-subnav [aria-current]")
      ?.scrollIntoView({ block: "nearest", inline: "center" });
    applyTheme();
    applyTitle();
    new MutationObserver(applyTheme).observe(document.body, { attributeFilter: ["class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
    const whole = { childList: true, characterData: true, subtree: true };
    new MutationObserver(applyTitle).observe(document.documentElement, whole);
  }

  /* Polls the server; tells the page only when something has changed. */
  const mayNotify = () => window.isSecureContext && window.Notification?.permission === "granted";

  async function notify(run) {
    const job = await (await fetch(`slimscope/api/runs/${run}`)).json();
    const note = new Notification(`${run} has ${job.state}`, { body: job.name ?? "", tag: run });
    note.onclick = () => {
      window.focus();
      window.location.href = `run?id=${run}`;
    };
  }

  function pulse(element, changed) {
    const line = element.querySelector(".status-line");
    let pages = null,
      cursor = null,
      timer = null,
      last = new Date(),
      working = [];
    async function ask() {
      clearTimeout(timer);
      if (document.hidden && !(mayNotify() && working.length)) return;
      let wait = 10000;
      try {
        const answer = await (await fetch("slimscope/pulse", { cache: "no-store" })).json();
        pages ??= answer.pages;
        if (pages !== answer.pages) {
          line.innerHTML =
            '<span class="problem">The dashboard has changed since this page was opened. <a href="">Reload the page</a></span>';
          return; // its events would be refused
        }
        last = new Date();
        line.dataset.heard = "true";
        wait = answer.live && !document.hidden ? 2000 : 10000;
        if (line.innerHTML !== answer.html.trim()) line.innerHTML = answer.html.trim();
        if (cursor !== null && cursor !== answer.cursor) changed();
        cursor = answer.cursor;
        if (mayNotify()) for (const run of working) if (!answer.runs.includes(run)) notify(run);
        working = answer.runs;
      } catch {
        line.textContent = `No answer from the server. Last update ${last.toLocaleTimeString()}.`;
        wait = 3000;
      }
      timer = setTimeout(ask, wait);
    }
    document.addEventListener("visibilitychange", ask);
    api.look = ask;
    ask();
  }

  /* Gradio also selects tabs by itself while a page is built; only a person's choice counts. */
  let touched = false;
  for (const kind of ["pointerdown", "keydown"]) {
    document.addEventListener(
      kind,
      () => {
        touched = true;
      },
      { capture: true },
    );
  }

  function tab(name) {
    if (touched) address({ tab: name });
  }

  /* Browsers allow few changes of an address in a second: what moves under the hand is written once it rests. */
  const REST_MS = 250;
  let waiting = {},
    rest = 0;
  function address(fields, moving = false) {
    Object.assign(waiting, fields);
    clearTimeout(rest);
    if (moving) rest = setTimeout(write, REST_MS);
    else write();
  }

  function write() {
    const url = new URL(window.location);
    for (const [name, value] of Object.entries(waiting)) {
      const words = Array.isArray(value) ? value.join(",") : String(value ?? "");
      if (words) url.searchParams.set(name, words);
      else url.searchParams.delete(name);
    }
    waiting = {};
    clearTimeout(rest);
    if (url.href === window.location.href) return;
    const person = touched && performance.now() - pushed > 1000; // what follows at once belongs to it
    if (person) pushed = performance.now();
    history[person ? "pushState" : "replaceState"](history.state, "", url);
  }
  window.addEventListener("pagehide", write);

  /* Back undoes the last view: the page is drawn anew for the address it then has. */
  let pushed = -1000;
  window.addEventListener("popstate", () => {
    if (!api.back?.()) window.location.reload();
  });

  /* --- charts ---------------------------------------------------------------------------- */

  const larger = () => parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;

  /* The figure in the mode of the page, with larger type on wide screens. */
  function shade(figure) {
    const shaded = window.slimscopeShade(
      figure,
      api.templates,
      dark(),
      getComputedStyle(document.body),
    );
    if (larger() !== 1) shaded.layout.template = enlarged(shaded.layout.template, larger());
    return shaded;
  }

  /* The template with larger type, for wide screens and projectors. */
  function enlarged(template, factor) {
    return JSON.parse(JSON.stringify(template), (key, value) =>
      key === "size" && typeof value === "number" ? Math.round(value * factor) : value,
    );
  }

  function plot(element, props, watch, select) {
    const Plotly = window.Plotly; // kept: another script may replace the global
    const box = element.querySelector(".plot");
    const canvas = element.querySelector(".plot-canvas");
    const empty = element.querySelector(".plot-empty");
    const room = parseFloat(box.style.minHeight);
    const config = {
      displaylogo: false,
      responsive: true,
      showSendToCloud: false,
      plotlyServerURL: "",
      displayModeBar: false, // drag zooms, a double click shows all again
    };
    let picked = null,
      bound = false;

    function meta() {
      return (props.value && props.value.layout && props.value.layout.meta) || {};
    }

    function outline() {
      if (!picked) return [];
      const trace = props.value.data[0];
      const i = trace.x.indexOf(picked[0]),
        j = trace.y.indexOf(picked[1]);
      if (i < 0 || j < 0) return [];
      const css = getComputedStyle(document.body);
      const [text, paper] = ["--text", "--paper"].map((name) => css.getPropertyValue(name).trim());
      const line = { color: text, width: 3 };
      const place = { x0: i - 0.5, x1: i + 0.5, y0: j - 0.5, y1: j + 0.5 };
      return [
        { type: "rect", layer: "above", ...place, line },
        { type: "rect", layer: "above", ...place, line: { color: paper, width: 1 } },
      ];
    }

    async function draw() {
      const value = props.value;
      const none = !value || typeof value === "string" || "nothing" in value;
      const presented = document.documentElement.classList.contains("presenting");
      empty.hidden = !none || !value;
      canvas.style.visibility = none ? "hidden" : "visible";
      box.classList.toggle("loading", value === "");
      const height = room + (meta().more || 0);
      box.style.minHeight = `${value?.nothing ? Math.min(room, 96) : presented ? Math.max(height, Math.min(height * larger(), 0.42 * window.innerHeight)) : height}px`;
      if (none) {
        empty.textContent = value?.nothing || value || "";
        return;
      }
      const figure = shade(value);
      picked = meta().picked || null;
      if (canvas.clientWidth < NARROW)
        for (const trace of figure.data) trace.name = trace.name?.replace(/ · (?=[^·]*$)/, "<br>");
      if (meta().pick) figure.layout.shapes = [...(figure.layout.shapes || []), ...outline()];
      await Plotly.react(canvas, figure.data, figure.layout, config);
      describe();
      if (!bound) bind();
    }

    function describe() {
      const svg = canvas.querySelector("svg.main-svg");
      if (!svg) return;
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", box.dataset.label);
      if (meta().pick) {
        canvas.tabIndex = 0;
        canvas.setAttribute("role", "group");
        canvas.setAttribute("aria-label", `${box.dataset.label}. Arrow keys choose a cell.`);
      }
    }

    function pick(i, j) {
      const trace = props.value.data[0];
      picked = [trace.x[i], trace.y[j]];
      Plotly.relayout(canvas, { shapes: outline() });
      const custom = trace.customdata && trace.customdata[j] ? trace.customdata[j][i] : null;
      tell({ x: picked[0], y: picked[1], customdata: custom });
    }

    /* Gradio drops the data of an event it has to defer, so the selection is kept here too. */
    function tell(choice) {
      api.picked = choice;
      select(choice);
    }

    function clicked(event) {
      const point = event.points.find((each) => each.customdata != null) || event.points[0];
      if (!meta().pick) tell({ x: point.x, y: point.y, customdata: point.customdata ?? null });
      else pick(point.pointIndex[1], point.pointIndex[0]);
      canvas.focus({ preventScroll: true }); // so that the arrow keys go on from here
    }

    function key(event) {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const move = moves[event.key];
      if (!move || !meta().pick) return;
      event.preventDefault();
      const trace = props.value.data[0];
      const down = (props.value.layout.yaxis || {}).autorange === "reversed" ? 1 : -1;
      let i = picked ? trace.x.indexOf(picked[0]) : 0,
        j = picked ? trace.y.indexOf(picked[1]) : 0;
      do {
        i += move[0];
        j += move[1] * down;
      } while (trace.z[j] && i in trace.z[j] && trace.z[j][i] === null);
      if (trace.z[j] && i in trace.z[j]) pick(i, j);
    }

    function bind() {
      bound = true;
      canvas.on("plotly_click", clicked);
      canvas.addEventListener("keydown", key);
      // not while hidden; at once, as Plots.resize waits, and a chart that is too tall covers what is below it
      new ResizeObserver(
        () => box.offsetWidth && Plotly.relayout(canvas, { autosize: true }),
      ).observe(box);
      new MutationObserver(draw).observe(document.body, { attributeFilter: ["class"] });
    }

    watch("value", draw);
    draw();
  }

  /* --- tables ---------------------------------------------------------------------------- */

  /* Quoted where needed; a text that a spreadsheet would take for a formula gets an apostrophe. */
  const cell = (value) => {
    const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  /* Saves a table as NAME.csv, with the exact numbers behind the rounded ones. */
  function saveTable(source, name) {
    if (!source) return;
    const rows = [...source.rows].map((row) =>
      [...row.cells].map((c) => cell(c.dataset.value ?? c.textContent.trim())).join(","),
    );
    api.save(`${name}.csv`, [rows.join("\n"), "\n"], "text/csv");
  }

  /* A click on a button with data-csv="NAME" saves the table beside it. */
  function table(element) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-csv]");
      if (button) saveTable(element.querySelector("table"), button.dataset.csv);
    });
  }

  /* Modules of pages are loaded where they are used, those that draw all of a page already while Gradio starts. */
  function modules(folder) {
    api.module = (name) => import(`${folder}/${name}.js`);
    const page = location.pathname.split("/").pop();
    if (["weights", "workbench"].includes(page))
      api.module(`${page}/page`).then((each) => each.ahead());
  }

  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-trace]")) return;
    event.preventDefault();
    api.module("workbench/trace").then(({ traced }) => traced(event.target));
  });

  const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  /* Draws every figure that a panel shows with data of that name; one that is shown again keeps its own, one with other
     data stops the first: both would write into the same words. */
  function figures(name, draw) {
    const look = () => {
      for (const figure of document.querySelectorAll(`figure[data-${name}]`)) {
        if (figure.drawn === figure.dataset[name]) continue;
        figure.stop?.();
        figure.drawn = figure.dataset[name];
        figure.stop = draw(figure);
      }
    };
    new MutationObserver(look).observe(document.documentElement, {
      childList: true,
      subtree: true,
    });
    look();
  }

  /* A question to the person, not yet shown, outside of the panels: a redraw does not close it. */
  function dialog(css, html) {
    const made = Object.assign(document.createElement("dialog"), {
      className: `ask ${css}`,
      innerHTML: html,
    });
    document.body.append(made);
    return made;
  }

  /* Takes each row of JSON that a response streams as server-sent events. */
  async function events(response, take) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) take(JSON.parse(line.slice(6)));
    }
  }

  const api = {
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
    picked: null,
    templates: {},
  };
  return api;
})();
