/* Files saved from a page: a chart as an image, as the CSV of its data table, or as an HTML file that
   needs no network. All files are created in the browser. */
(() => {
  const { closest, create, find, findAll } = window.slimscope;
  const REVOKE_MS = 10000;

  /** @type {Slimscope["save"]} */
  function save(name, parts, type) {
    const href = URL.createObjectURL(new Blob(parts, { type }));
    create("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), REVOKE_MS);
  }

  /**
   * Saves the value of a `Download`, whose data is in base64.
   * @type {Slimscope["download"]}
   */
  function download(props, watch) {
    watch("value", () => {
      const file = props.value;
      if (file?.data) save(file.name, [Uint8Array.from(atob(file.data), (c) => c.charCodeAt(0))]);
    });
  }

  /**
   * Parts of an HTML file that shows the chart without a network.
   * @param {PlotlyElement} chart
   * @param {string} heading
   * @param {string} question
   */
  async function standAlone(chart, heading, question) {
    const source = find(document, 'script[src*="plotly-"]', HTMLScriptElement).src;
    const script = await (await fetch(source)).text();
    const json = (/** @type {unknown} */ value) => JSON.stringify(value).replaceAll("<", "\\u003c");
    const text = (/** @type {string} */ value) =>
      value.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    const [open, close] = ["<scr" + "ipt>", "</scr" + "ipt>"]; // unsplit, they would end this script
    const { width, height, ...layout } = chart.layout;
    const css = getComputedStyle(document.body);
    return [
      `<!doctype html><html lang=en><meta charset=utf-8><title>${text(heading)}</title>`,
      `<style>body{font:14px/20px system-ui,sans-serif;margin:24px;background:${css.getPropertyValue("--paper")};`,
      `color:${css.getPropertyValue("--text")}}h1{font-size:20px}#chart{height:70vh}p{max-width:70ch}</style>`,
      `<h1>${text(heading)}</h1><div id=chart></div><p>${text(question)}</p>`,
      `${open}${script.replaceAll("</scr", "<\\/scr")}${close}`,
      `${open}Plotly.newPlot('chart',${json(chart.data)},${json({ ...layout, autosize: true })},`,
      `{responsive:true,displaylogo:false,showSendToCloud:false})${close}</html>`,
    ];
  }

  /**
   * The data table of a chart's card. Gradio builds the content of an accordion when it is first opened.
   * @param {Element} card
   */
  async function dataTable(card) {
    const table = () => findAll(card, ".card-data table", HTMLTableElement)[0] ?? null;
    if (table()) return table();
    const toggle = find(card, ".card-data .label-wrap");
    toggle.click();
    for (let frame = 0; frame < 100 && !table(); frame++) await new Promise(requestAnimationFrame);
    const built = table();
    toggle.click();
    return built;
  }

  /**
   * Shows a card in full screen until Escape or a second call.
   * @type {Slimscope["fullScreen"]}
   */
  function fullScreen(card) {
    if (!card) return;
    if (document.fullscreenElement) document.exitFullscreen();
    else card.requestFullscreen().catch(() => {}); // a frame may not be allowed to
  }

  /**
   * @param {Element} card
   * @param {string | undefined} format "png", "svg", "csv", "html", or "story"
   */
  async function saveChart(card, format) {
    const chart = /** @type {PlotlyElement | null} */ (card.querySelector(".plot-canvas"));
    if (!chart?.data || chart.style.visibility === "hidden") return;
    if (format === "story") return window.slimscope.share(chart.closest(".block[id]")?.id);
    const label = chart.layout.meta?.name || find(card, ".plot").dataset.label || "";
    const name = label.replace(/[^\w.-]+/g, "-");
    if (format === "csv") {
      window.slimscope.saveTable(await dataTable(card), name);
    } else if (format === "html") {
      const questions = findAll(card, ".question").map((element) => element.textContent);
      const heading = card.querySelector("h2")?.textContent || name;
      save(`${name}.html`, await standAlone(chart, heading, questions.join(" ")), "text/html");
    } else {
      window.Plotly.downloadImage(chart, {
        format,
        filename: name,
        width: chart.clientWidth,
        height: chart.clientHeight,
        scale: format === "png" ? 2 : 1,
      });
    }
  }

  /**
   * A card's menu: buttons with data-save="FORMAT" save its chart, one with data-full fills the screen.
   * @param {HTMLElement} element
   */
  function saving(element) {
    const menu = find(element, "details", HTMLDetailsElement);
    document.addEventListener("click", ({ target }) => {
      if (target instanceof Node && !menu.contains(target)) menu.open = false;
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      find(menu, "summary").focus();
    });
    find(element, "[data-full]").onclick = () => fullScreen(element.closest(".card"));
    element.addEventListener("click", (event) => {
      const button = closest(event, "[data-save]");
      const card = button?.closest(".card");
      if (button) menu.open = false;
      if (card) saveChart(card, button?.dataset.save);
    });
  }

  Object.assign(window.slimscope, { save, saving, download, fullScreen });
})();
