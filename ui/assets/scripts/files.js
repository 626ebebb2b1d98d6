/* Files saved from a page: a chart as an image, as the CSV of its data table, or as an HTML file that
   needs no network. All of it is made in the browser. */
(() => {
  function save(name, parts, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(parts, { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  /* Saves what a `Download` is given: {name, data}, the data in base64. */
  function download(props, watch) {
    watch("value", () => {
      const file = props.value;
      if (file && file.data)
        save(file.name, [Uint8Array.from(atob(file.data), (c) => c.charCodeAt(0))]);
    });
  }

  /* An HTML file that shows the chart without a network. */
  async function standAlone(chart, heading, question) {
    const source = document.querySelector('script[src*="plotly-"]').src;
    const script = await (await fetch(source)).text();
    const safe = (value) => JSON.stringify(value).replaceAll("<", "\\u003c");
    const text = (value) => value.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    const [open, close] = ["<scr" + "ipt>", "</scr" + "ipt>"]; // whole, they would end this script
    const { width, height, ...layout } = chart.layout;
    const css = getComputedStyle(document.body);
    return [
      "<!doctype html><html lang=en><meta charset=utf-8><title>",
      text(heading),
      "</title>",
      `<style>body{font:14px/20px system-ui,sans-serif;margin:24px;background:${css.getPropertyValue("--paper")};`,
      `color:${css.getPropertyValue("--text")}}h1{font-size:20px}#chart{height:70vh}p{max-width:70ch}</style><h1>`,
      text(heading),
      "</h1><div id=chart></div><p>",
      text(question),
      "</p>",
      open,
      script.replaceAll("</scr", "<\\/scr"),
      close,
      open,
      "Plotly.newPlot('chart',",
      safe(chart.data),
      ",",
      safe({ ...layout, autosize: true }),
      ",{responsive:true,displaylogo:false,showSendToCloud:false})",
      close,
      "</html>",
    ];
  }

  /* The data table of a chart's card. Gradio builds what an accordion holds when it first opens. */
  async function dataTable(card) {
    const table = () => card.querySelector(".card-data table");
    if (table()) return table();
    const toggle = card.querySelector(".card-data .label-wrap");
    toggle.click();
    for (let frame = 0; frame < 100 && !table(); frame++) await new Promise(requestAnimationFrame);
    const built = table();
    toggle.click();
    return built;
  }

  /* A card alone on the screen, until Escape or the same again. */
  function fullScreen(card) {
    if (!card) return;
    if (document.fullscreenElement) document.exitFullscreen();
    else card.requestFullscreen().catch(() => {}); // a frame may not
  }

  /* Leads to the reports, with the chart and the address it is drawn from. */
  function addToReport(chart) {
    const query = new URLSearchParams(location.search);
    query.set("add", chart);
    location.href = `report?${query}`;
  }

  /* Buttons with data-save="png|svg|csv|html" save the chart of their card; "report" adds it to one. */
  function saving(element) {
    const menu = element.querySelector("details");
    document.addEventListener("click", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      menu.firstChild.focus();
    });
    element.querySelector("[data-full]").onclick = () => fullScreen(element.closest(".card"));
    element.addEventListener("click", async (event) => {
      const button = event.target.closest("[data-save]");
      if (button) menu.open = false;
      const card = button && button.closest(".card");
      const chart = card && card.querySelector(".plot-canvas");
      if (!chart || !chart.data || chart.style.visibility === "hidden") return;
      const format = button.dataset.save;
      if (format === "report") return addToReport(chart.closest(".block[id]").id);
      const name = ((chart.layout.meta || {}).name || chart.closest(".plot").dataset.label).replace(
        /[^\w.-]+/g,
        "-",
      );
      const size = { width: chart.clientWidth, height: chart.clientHeight };
      if (format === "csv") {
        window.slimscope.saveTable(await dataTable(card), name);
      } else if (format === "html") {
        const words = [...card.querySelectorAll(".question")]
          .map((each) => each.textContent)
          .join(" ");
        save(
          `${name}.html`,
          await standAlone(chart, card.querySelector("h2")?.textContent || name, words),
          "text/html",
        );
      } else {
        window.Plotly.downloadImage(chart, {
          format,
          filename: name,
          ...size,
          scale: format === "png" ? 2 : 1,
        });
      }
    });
  }

  Object.assign(window.slimscope, { save, saving, download, fullScreen });
})();
