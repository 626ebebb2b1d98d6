/* Menus of the Workbench: the state as runs, and as files. */
import { button, link, reason } from "./elements.js";

const { find, findAll } = window.slimscope;

/** @typedef {import("./page.js").Page} Page */
/** @typedef {{refused?: string, cost: string, warnings: string, address: string}} Plan As `ui/pages/workbench/plans.py`
    sends it. */

/** The server's answer to a request, which has a body if it changes something. Throws an Error with the refusal.
    @param {string} address @param {object} [body] */
export async function json(address, body) {
  const answer = await fetch(
    `slimscope/${address}`,
    body && {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    },
  );
  const found = await answer
    .json()
    .catch(() => ({ what: `The server answered ${answer.status}.` }));
  if (answer.ok) return found;
  throw new Error([found.what, found.why, found.do].filter(Boolean).join(" "));
}

/** Queues a profile of a model; the button becomes a link to it, or the reason for a refusal.
    @param {string} model @param {HTMLButtonElement} asked @param {() => void} queued */
export async function queueProfile(model, asked, queued) {
  asked.disabled = true;
  try {
    const { id } = await json("api/submit/profile?preset=default", { model });
    asked.replaceWith(link(`run?id=${id}`, id), " is queued.");
    queued();
  } catch (error) {
    asked.replaceWith(reason(error));
  }
}

let filled = 0; // number of times the menu of runs was opened

/** Fills the menu of runs that produce the state: for each effort, its cost, a button and a link.
    @param {HTMLElement} menu @param {Page} page */
export async function fillRuns(menu, page) {
  const { view } = page;
  const now = ++filled;
  const asked = { model: view.model.model, state: view.address };
  const rows = [...menu.querySelectorAll("[data-effort]")];
  const tell = (/** @type {Element} */ row, /** @type {(string | Node)[]} */ words) =>
    find(row, "p").replaceChildren(...words);
  for (const row of rows) tell(row, ["…"]);
  try {
    /** @type {Record<string, Plan>} */
    const plans = await json(`workbench/runs?${new URLSearchParams(asked)}`);
    if (now !== filled) return;
    for (const row of rows) {
      const effort = row.getAttribute("data-effort") ?? "";
      tell(row, offered(plans[effort], { ...asked, effort }, page));
    }
  } catch (error) {
    for (const row of rows) tell(row, [reason(error)]);
  }
}

/** Cost of runs, a button that queues them, and a link to their form.
    @param {Plan} plan @param {Record<string, string>} asked @param {Page} page */
function offered({ refused, cost, warnings, address }, asked, page) {
  if (refused) return [refused];
  const known = page.view.summary(page.measured.of(asked.state));
  const figures = Object.entries(known).map(([name, figure]) => [name, String(figure)]);
  const query = new URLSearchParams({ ...asked, ...Object.fromEntries(figures) });
  const made = button("Queue", () => queue(made, query, page), { className: "small-button" });
  return [`${cost} ${warnings} `, made, " ", link(address, "Open in New run")];
}

/** @param {HTMLButtonElement} made @param {URLSearchParams} query @param {Page} page */
async function queue(made, query, page) {
  made.disabled = true;
  try {
    /** @type {{id: string}[]} */
    const runs = await json(`api/queue-state?${query}`, {});
    const links = runs.flatMap(({ id }, n) => [n ? ", " : "", link(`run?id=${id}`, id)]);
    const menu = made.closest("details");
    if (menu) {
      find(menu, "summary").focus();
      menu.open = false;
    }
    page.notice.replaceChildren("Queued: ", ...links, ". The result appears as final.");
  } catch (error) {
    made.replaceWith(reason(error));
    return;
  }
  page.refresh(true);
}

/** Makes the menu of file formats ready. @param {HTMLElement} menu @param {Page} page */
export function fillExports(menu, page) {
  const said = find(menu, "p");
  said.textContent = "";
  for (const button of findAll(menu, "button", HTMLButtonElement))
    button.onclick = async () => {
      button.disabled = true;
      said.textContent = "…";
      said.textContent = await files(page, button.value).catch(reason);
      button.disabled = false;
    };
}

/** Saves the state as a model in the data folder. @param {Page} page @param {string} format */
async function files({ view, stream }, format) {
  const { model } = view.model;
  const now = new Date().toISOString().slice(0, 16).replace(/\D/g, "");
  const made = await json("workbench/export", {
    model,
    state: view.address,
    browser: stream.browser,
    format,
    name: `${model.replace(/[^A-Za-z0-9._-]+/g, "-")}-${format}-${now}`,
  });
  /** @type {{bytes: number}[]} */
  const written = made.files;
  const size = written.reduce((sum, { bytes }) => sum + bytes, 0);
  return `models/${made.name} in the data folder: ${written.length} files, ${(size / 1e6).toFixed(1)}\u00a0MB, with a model card.`;
}
