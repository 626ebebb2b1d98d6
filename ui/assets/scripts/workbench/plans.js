/* Menus of the Workbench: the state as runs of the queue, and as files. */

const EFFORTS = {
  "one-shot": "As it is: pruned or rounded once",
  full: "Trained: SDS, DL-QAT, or both",
};
const FORMATS = {
  "compressed-tensors": "compressed-tensors",
  gguf: "GGUF",
  dense: "safetensors, dense",
};

const line = (...parts) => {
  const p = document.createElement("p");
  p.append(...parts);
  return p;
};
const link = (href, textContent) =>
  Object.assign(document.createElement("a"), { href, textContent });
const told = ({ what, why, do: help }) => [what, why, help].filter(Boolean).join(" ");
const time = (seconds) =>
  seconds < 90
    ? `${Math.round(seconds)}\u00a0s`
    : seconds < 5400
      ? `${Math.round(seconds / 60)}\u00a0min`
      : `${(seconds / 3600).toFixed(1)}\u00a0h`;

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
  if (!answer.ok) throw new Error(told(found));
  return found;
}

/** Queues a profile of a model; the button becomes a link to it, or why there is none. */
export async function queueProfile(model, button) {
  button.disabled = true;
  await json("api/submit/profile?preset=default", { model }).then(
    ({ run }) => button.replaceWith(link(`run?id=${run}`, `${run} is queued`)),
    (error) => button.replaceWith(error.message),
  );
}

/** Fills the menu that was opened: `queue` or `export`. */
export function fillMenu(menu, page) {
  const { model, address, stream } = page;
  const box = menu.lastElementChild,
    queues = menu.dataset.menu === "queue",
    said = line();
  const open = async (act, button) => {
    button.disabled = true;
    said.textContent = "…";
    said.replaceChildren(...(await act().catch((error) => [error.message])));
    button.disabled = false;
  };
  const buttons = Object.entries(queues ? EFFORTS : FORMATS).map(([name, words]) => {
    const button = Object.assign(document.createElement("button"), {
      type: "button",
      textContent: words,
    });
    button.onclick = () =>
      open(
        () => (queues ? plan(page, address, name) : files(model.model, address, name, stream)),
        button,
      );
    return button;
  });
  box.replaceChildren(...buttons, said);
}

/** What the runs of a state cost, and a button that queues them with what is known of it. */
async function plan(page, state, effort) {
  const asked = { model: page.model.model, state, effort },
    known = page.known();
  const steps = await json(`api/plan-state?${new URLSearchParams(asked)}`),
    sum = (part) => steps.reduce((all, each) => all + (each[part] ?? 0), 0);
  const warnings = steps.flatMap((each) => each.warnings ?? []).join(" "),
    costs = `${steps.map(({ kind }) => kind).join(", then ")}: about ${time(sum("seconds"))}, ${(sum("bytes") / 1e9).toFixed(1)} GB. ${warnings} `;
  const button = Object.assign(document.createElement("button"), {
    type: "button",
    className: "small-button",
    textContent: steps.length > 1 ? "Queue both" : "Queue it",
  });
  button.onclick = async () => {
    button.disabled = true;
    const runs = await json(
      `api/queue-state?${new URLSearchParams({ ...asked, ...known })}`,
      {},
    ).catch((error) => error);
    if (runs instanceof Error) {
      button.replaceWith(runs.message);
      return;
    }
    button.replaceWith(
      "Queued: ",
      ...runs.flatMap(({ id }, n) => [n ? ", " : "", link(`run?id=${id}`, id)]),
      ".",
    );
    page.refresh(true);
  };
  return [
    costs,
    button,
    ...(steps.length > 1
      ? []
      : [
          " ",
          link(
            `new?${new URLSearchParams({ kind: steps[0].kind, ...steps[0].config })}`,
            "Change it first",
          ),
        ]),
  ];
}

async function files(model, state, format, stream) {
  const name = `${model.replace(/[^A-Za-z0-9._-]+/g, "-")}-${format}-${new Date().toISOString().slice(0, 16).replace(/\D/g, "")}`;
  const made = await json("workbench/export", {
    model,
    state,
    browser: stream.browser,
    format,
    name,
  });
  const size = made.files.reduce((sum, { bytes }) => sum + bytes, 0);
  return [
    `models/${made.name} in the data folder: ${made.files.length} files, ${(size / 1e6).toFixed(1)}\u00a0MB, with a card that says how it was made.`,
  ];
}
