/* Menus of the Workbench: the state as runs of the queue, and as files. */
import { button, reason } from "./elements.js";

/** @typedef {import("./page.js").Page} Page */
/** @typedef {{kind: string, config: Record<string, string>, seconds: number | null, bytes: number | null, warnings: string[]}} Step */

const EFFORTS = {
  "one-shot": "As it is: pruned or rounded once",
  full: "Trained: SDS, DL-QAT, or both",
};
const FORMATS = {
  "compressed-tensors": "compressed-tensors",
  gguf: "GGUF",
  dense: "safetensors, dense",
};

/** @param {string} href @param {string} words */
const link = (href, words) =>
  Object.assign(document.createElement("a"), { href, textContent: words });

/** @param {number} seconds */
function time(seconds) {
  if (seconds < 90) return `${Math.round(seconds)}\u00a0s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)}\u00a0min`;
  return `${(seconds / 3600).toFixed(1)}\u00a0h`;
}

/** The answer of the server, to a body if there is one. Throws an Error that says why there is none.
    @param {string} address @param {object} [body] */
async function json(address, body) {
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

/** Queues a profile of a model; the button becomes a link to it, or why there is none.
    @param {string} model @param {HTMLButtonElement} asked */
export async function queueProfile(model, asked) {
  asked.disabled = true;
  await json("api/submit/profile?preset=default", { model }).then(
    ({ run }) => asked.replaceWith(link(`run?id=${run}`, `${run} is queued`)),
    (error) => asked.replaceWith(reason(error)),
  );
}

/** Fills the menu that was opened: `queue` or `export`. @param {HTMLElement} menu @param {Page} page */
export function fillMenu(menu, page) {
  const queues = menu.dataset.menu === "queue";
  const said = document.createElement("p");
  const buttons = Object.entries(queues ? EFFORTS : FORMATS).map(([name, words]) => {
    const made = button(words, async () => {
      made.disabled = true;
      said.textContent = "…";
      const work = queues ? plan(page, name) : files(page, name);
      said.replaceChildren(...(await work.catch((error) => [reason(error)])));
      made.disabled = false;
    });
    return made;
  });
  menu.lastElementChild?.replaceChildren(...buttons, said);
}

/** The costs of the runs of a state, and a button that queues them with what is known of it.
    @param {Page} page @param {string} effort */
async function plan(page, effort) {
  const { view, measured } = page;
  const asked = { model: view.model.model, state: view.address, effort };
  const known = view.summary(measured.of(view.address));
  /** @type {Step[]} */
  const steps = await json(`api/plan-state?${new URLSearchParams(asked)}`);
  const seconds = steps.reduce((sum, step) => sum + (step.seconds ?? 0), 0);
  const bytes = steps.reduce((sum, step) => sum + (step.bytes ?? 0), 0);
  const kinds = steps.map(({ kind }) => kind).join(", then ");
  const warnings = steps.flatMap((step) => step.warnings ?? []).join(" ");
  const costs = `${kinds}: about ${time(seconds)}, ${(bytes / 1e9).toFixed(1)} GB. ${warnings} `;
  const figures = Object.entries(known).map(([name, figure]) => [name, String(figure)]);
  const query = new URLSearchParams({ ...asked, ...Object.fromEntries(figures) });
  const made = button(
    steps.length > 1 ? "Queue both" : "Queue it",
    () => queue(made, query, page),
    { className: "small-button" },
  );
  if (steps.length > 1) return [costs, made];
  const form = new URLSearchParams({ kind: steps[0].kind, ...steps[0].config });
  return [costs, made, " ", link(`new-run?${form}`, "Change it first")];
}

/** @param {HTMLButtonElement} made @param {URLSearchParams} query @param {Page} page */
async function queue(made, query, page) {
  made.disabled = true;
  try {
    /** @type {{id: string}[]} */
    const runs = await json(`api/queue-state?${query}`, {});
    const links = runs.flatMap(({ id }, n) => [n ? ", " : "", link(`run?id=${id}`, id)]);
    made.replaceWith("Queued: ", ...links, ".");
  } catch (error) {
    made.replaceWith(reason(error));
    return;
  }
  page.refresh(true);
}

/** Writes the state as a model of the data folder. @param {Page} page @param {string} format */
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
  return [
    `models/${made.name} in the data folder: ${written.length} files, ${(size / 1e6).toFixed(1)}\u00a0MB, with a card that says how it was made.`,
  ];
}
