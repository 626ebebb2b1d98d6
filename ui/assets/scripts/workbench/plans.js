/* Menus of the Workbench: the state as runs of the queue, and as files. */

const EFFORTS = { "one-shot": "As it is: pruned or rounded once", full: "Trained: SDS, DL-QAT, or both" };
const FORMATS = { "compressed-tensors": "compressed-tensors", gguf: "GGUF", dense: "safetensors, dense" };

const line = (...parts) => { const p = document.createElement("p"); p.append(...parts); return p; };
const link = (href, textContent) => Object.assign(document.createElement("a"), { href, textContent });
const told = ({ what, why, do: help }) => [what, why, help].filter(Boolean).join(" ");
const time = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);

async function json(address, body) {
  const answer = await fetch(`slimscope/${address}`, body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const found = await answer.json().catch(() => ({ what: `The server answered ${answer.status}.` }));
  if (!answer.ok) throw new Error(told(found));
  return found;
}

/** Queues a profile of a model; the button becomes a link to it, or why there is none. */
export async function queueProfile(model, button) {
  button.disabled = true;
  await json("api/submit/profile?preset=default", { model })
    .then(({ run }) => button.replaceWith(link(`run?id=${run}`, `${run} is queued`)), (error) => button.replaceWith(error.message));
}

/** Fills the menu that was opened: `queue` or `export`. */
export function fillMenu(menu, { model, address, stream }) {
  const box = menu.lastElementChild, queues = menu.dataset.menu === "queue", said = line();
  const open = async (act, button) => {
    button.disabled = true;
    said.textContent = "…";
    said.replaceChildren(...(await act().catch((error) => [error.message])));
    button.disabled = false;
  };
  const buttons = Object.entries(queues ? EFFORTS : FORMATS).map(([name, words]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: words });
    button.onclick = () => open(() => (queues ? plan(model.model, address, name) : files(model.model, address, name, stream)), button);
    return button;
  });
  box.replaceChildren(...buttons, said);
}

async function plan(model, state, effort) {
  const steps = await json(`api/plan-state?${new URLSearchParams({ model, state, effort })}`), sum = (part) => steps.reduce((all, each) => all + (each[part] ?? 0), 0);
  const warnings = steps.flatMap((each) => each.warnings ?? []).join(" "), costs = `${steps.map(({ kind }) => kind).join(", then ")}: about ${time(sum("seconds"))}, ${(sum("bytes") / 1e9).toFixed(1)} GB. ${warnings} `;
  if (steps.length === 1) return [costs, link(`new?${new URLSearchParams({ kind: steps[0].kind, ...steps[0].config })}`, "Look at it and queue it")];
  const button = Object.assign(document.createElement("button"), { type: "button", className: "small-button", textContent: "Queue both" });
  button.onclick = async () => {
    button.disabled = true;
    const pipeline = { model, steps: steps.map(({ kind, config: { model: _, ...config } }) => ({ [kind]: config })) };
    await json("api/pipelines", { pipeline }).then(() => button.replaceWith(link("queue", "They are queued")), (error) => button.replaceWith(error.message));
  };
  return [costs, button];
}

async function files(model, state, format, stream) {
  const name = `${model.replace(/[^A-Za-z0-9._-]+/g, "-")}-${format}-${new Date().toISOString().slice(0, 16).replace(/\D/g, "")}`;
  const made = await json("workbench/export", { model, state, browser: stream.browser, format, name });
  const size = made.files.reduce((sum, { bytes }) => sum + bytes, 0);
  return [`models/${made.name} in the data folder: ${made.files.length} files, ${(size / 1e6).toFixed(1)} MB, with a card that says how it was made.`];
}
