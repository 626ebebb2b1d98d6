/* What is saved from a page: a chart as picture, figures, or a page of its own that needs no network;
   a table as CSV. All of it is made in the browser. */
(() => {
  const { cell } = window.slimscope;

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
      if (file && file.data) save(file.name, [Uint8Array.from(atob(file.data), (c) => c.charCodeAt(0))]);
    });
  }

  const plainText = (text) => String(text ?? "").replace(/<[^>]*>/g, "");
  const line = (cells) => cells.map((each) => cell(String(each ?? ""))).join(",");

  /* The figures a chart draws: one column a line where all share their x, else one row a point. */
  function figuresOf({ data, layout }) {
    const meta = layout.meta || {}; // names axes that show no title
    const title = (axis, name) => plainText(((layout[axis] || {}).title || {}).text) || meta[name] || name;
    const lines = data.filter((trace) => trace.showlegend !== false || trace.name || trace.z);
    if (lines[0] && lines[0].z) {
      const heat = lines[0], head = ["Tensor", "Module", title("xaxis", "x"), plainText(heat.colorbar.title.text)];
      const rows = heat.y.flatMap((y, j) => heat.x.map((x, i) => [heat.customdata[j][i], y, x, heat.z[j][i]]));
      return [head, ...rows.filter((row) => row[0])];
    }
    const name = (trace) => (trace.meta || {}).column || plainText(trace.name).split(" · ")[0];
    const shared = lines.every((trace) => String(trace.x) === String(lines[0].x));
    if (shared)
      return [[title("xaxis", "x"), ...lines.map(name)],
        ...lines[0].x.map((x, i) => [x, ...lines.map((trace) => trace.y[i])])];
    const known = (trace, i) => (Array.isArray(trace.customdata) ? trace.customdata[i] : "");
    return [["Line", "Detail", title("xaxis", "x"), title("yaxis", "y")],
      ...lines.flatMap((trace) => trace.x.map((x, i) => [name(trace), known(trace, i), x, trace.y[i]]))];
  }

  /* One file that shows the chart anywhere, without a network. */
  async function standAlone(chart, heading, question) {
    const source = document.querySelector('script[src*="plotly-"]').src;
    const script = await (await fetch(source)).text();
    const safe = (value) => JSON.stringify(value).replaceAll("<", "\\u003c");
    const text = (value) => value.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    const [open, close] = ["<scr" + "ipt>", "</scr" + "ipt>"]; // whole, they would end this script
    const { width, height, ...layout } = chart.layout;
    const css = getComputedStyle(document.body);
    return ["<!doctype html><html lang=en><meta charset=utf-8><title>", text(heading), "</title>",
      `<style>body{font:14px/20px system-ui,sans-serif;margin:24px;background:${css.getPropertyValue("--paper")};`,
      `color:${css.getPropertyValue("--text")}}h1{font-size:20px}#chart{height:70vh}p{max-width:70ch}</style><h1>`,
      text(heading), "</h1><div id=chart></div><p>", text(question), "</p>",
      open, script.replaceAll("</scr", "<\\/scr"), close, open, "Plotly.newPlot('chart',", safe(chart.data), ",",
      safe({ ...layout, autosize: true }), ",{responsive:true,displaylogo:false,showSendToCloud:false})", close, "</html>"];
  }

  /* Buttons with data-save="png|svg|csv|html" save the chart of their card. */
  function saving(element) {
    element.addEventListener("click", async (event) => {
      const button = event.target.closest("[data-save]");
      const card = button && button.closest(".card");
      const chart = card && card.querySelector(".plot-canvas");
      if (!chart || !chart.data || chart.style.visibility === "hidden") return;
      const format = button.dataset.save;
      const name = ((chart.layout.meta || {}).name || chart.closest(".plot").dataset.label)
        .replace(/[^\w.-]+/g, "-");
      const size = { width: chart.clientWidth, height: chart.clientHeight };
      if (format === "csv") {
        save(`${name}.csv`, [figuresOf(chart).map(line).join("\n"), "\n"], "text/csv");
      } else if (format === "html") {
        const words = [...card.querySelectorAll(".question")].map((each) => each.textContent).join(" ");
        save(`${name}.html`, await standAlone(chart, name, words), "text/html");
      } else {
        window.Plotly.downloadImage(chart, { format, filename: name, ...size, scale: format === "png" ? 2 : 1 });
      }
    });
  }

  Object.assign(window.slimscope, { save, saving, download });
})();
