/* Tables of figures, and their files. */
import { number } from "./canvas.js";

/** A table of figures with the button that saves it, as the macro `data_table` makes it. */
export function table(heads, rows, name) {
  const [box, scroll, figures] = ["div", "div", "table"].map((tag) => document.createElement(tag));
  Object.assign(scroll, { className: "scroll", tabIndex: 0, role: "region", ariaLabel: name });
  figures.className = "data";
  const cell = (value, i, tag) => {
    const one = Object.assign(document.createElement(i ? tag : "th"), {
      textContent: typeof value === "number" ? number(value, 4) : value,
      scope: "row",
    });
    if (i) one.className = "num";
    if (typeof value === "number" && Number.isFinite(value)) one.dataset.value = value;
    return one;
  };
  figures
    .createTHead()
    .insertRow()
    .append(...heads.map((head, i) => Object.assign(cell(head, i, "th"), { scope: "col" })));
  const body = figures.createTBody();
  for (const row of rows) body.insertRow().append(...row.map((value, i) => cell(value, i, "td")));
  const button = Object.assign(document.createElement("button"), {
    type: "button",
    className: "small-button",
    textContent: "Download CSV",
  });
  button.onclick = () => window.slimscope.saveTable(figures, name.replace(/[^\w.-]+/g, "-"));
  scroll.append(figures);
  box.append(scroll, button);
  return box;
}

/** Every statistic of every tensor at every stage as one CSV. */
export function saveAll(data) {
  const names = data.statistics.map(({ name }) => name),
    rows = [];
  data.tensors.forEach((tensor, t) =>
    data.stages.forEach(({ name }, s) => {
      const { n, zeros, below, above } = data.tail(t, s);
      if (n)
        rows.push([
          tensor.name,
          String(tensor.block),
          tensor.module,
          name,
          n,
          zeros,
          below,
          above,
          ...names.map((each) => data.value(each, t, s)),
        ]);
    }),
  );
  const heads = ["tensor", "block", "module", "stage", "n", "zeros", "below", "above", ...names];
  window.slimscope.saveTable(
    table(heads, rows, "").querySelector("table"),
    `${data.run}-statistics`,
  );
}

/** What a list offers: [words, value]; an open one is not taken out of a person's hand. */
export function offer(select, offered, value) {
  const key = JSON.stringify(offered);
  if (select.dataset.offered !== key)
    select.replaceChildren(...offered.map(([words, each]) => new Option(words, each)));
  select.dataset.offered = key;
  select.value = value;
}
