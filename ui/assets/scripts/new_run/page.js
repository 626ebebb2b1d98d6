/* New run: sends the composition to the server whenever it changes, and shows the parts of the page that come back. The
   server knows fields, recipes and plans (`ui/pages/new_run`). */

/** @typedef {{kind: string, values: Record<string, string>, several: Record<string, string>}} Step */
/** @typedef {{name: string, steps: Step[], at: number}} Composition */
/** @typedef {{composition: Composition, address: string, parts: Record<string, string>}} Answer */
/** @typedef {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} Control */

const PATH = "slimscope/new-run";
const { find, findAll } = window.slimscope;

/** @param {HTMLElement} element */
export function start(element) {
  new Form(element).open();
}

class Form {
  /** @type {Composition | null} */
  #composition = null;
  #last = Promise.resolve();
  #isDue = false; // a change that was not sent yet

  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.said = find(root, "#new-said");
    this.version = find(root, "[data-version]").dataset.version;
    root.addEventListener("input", (event) => this.#changed(event));
    root.addEventListener("change", (event) => this.#chosen(event));
    root.addEventListener("click", (event) => this.#clicked(event));
  }

  async open() {
    const answer = await this.#ask({ address: location.search });
    if (answer) this.#show(answer);
  }

  /** @param {Event} event */
  #changed({ target }) {
    if (!(target instanceof HTMLElement) || target.dataset.action || isOther(target)) return;
    this.said.replaceChildren(); // it referred to the previous composition
    if (this.#isDue) return;
    this.#isDue = true;
    this.#then(() => {
      this.#isDue = false;
      return this.#send("", "");
    });
  }

  /** @param {Event} event */
  #chosen({ target }) {
    if (isOther(target)) typed(target);
    else if (target instanceof HTMLSelectElement || target instanceof HTMLInputElement)
      this.#press(target.dataset.action, target.value);
  }

  /** @param {Event} event */
  #clicked(event) {
    const button = window.slimscope.closest(event, "button[data-action]", HTMLButtonElement);
    if (button?.dataset.action === "queue") this.#queue(button);
    else this.#press(button?.dataset.action, button?.dataset.value);
  }

  /** Adds the runs once; the button rests until the answer, which replaces it. @param {HTMLButtonElement} button */
  #queue(button) {
    const words = button.textContent;
    Object.assign(button, { disabled: true, ariaBusy: "true", textContent: "Adding …" });
    this.said.textContent = "Adding to the queue …";
    this.#then(async () => {
      await this.#send("queue", "");
      Object.assign(button, { disabled: false, ariaBusy: null, textContent: words });
    });
  }

  /** @param {string | undefined} action @param {string} [value] */
  #press(action, value = "") {
    if (!action) return;
    this.said.replaceChildren();
    this.#then(() => this.#send(action, value));
  }

  /** Sends one message at a time, so that each refers to the shown page. @param {() => Promise<void>} work */
  #then(work) {
    this.#last = this.#last.then(work);
  }

  /** @param {string} action @param {string} value */
  async #send(action, value) {
    const composition = this.#composition;
    if (!composition) return;
    const sent = this.#read(composition);
    const answer = await this.#ask({ composition: sent, action, value });
    if (!answer) return;
    const later = answer.parts["new-form"] ? changes(sent, this.#read(composition)) : [];
    this.#show(answer);
    for (const [name, text] of later) this.#type(name, text);
  }

  /** @param {object} message @returns {Promise<Answer | null>} */
  async #ask(message) {
    const body = JSON.stringify({ ...message, version: this.version });
    const headers = { "Content-Type": "application/json" };
    try {
      const response = await fetch(PATH, { method: "POST", body, headers });
      if (response.ok) return await response.json();
      this.said.replaceChildren(problem(await words(response)));
    } catch (error) {
      this.said.replaceChildren(problem(`The server did not answer (${error}). Try again.`));
    }
    return null;
  }

  /** Enter text typed while the server rendered the form. @param {string} name @param {string} text */
  #type(name, text) {
    const box = this.root.querySelector(`[data-field="${name}"]`);
    if (!(box instanceof HTMLInputElement) || box.type !== "text") return;
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** The composition with the values of the controls. @param {Composition} composition @returns {Composition} */
  #read(composition) {
    const copy = structuredClone(composition);
    copy.name = find(this.root, "#new-name", HTMLInputElement).value;
    for (const [control, name, step] of this.#controls(composition.at)) {
      const isSeveral = control.dataset.several !== undefined;
      const { values, several } = copy.steps[step];
      (isSeveral ? several : values)[name] = this.#value(control, name);
    }
    return copy;
  }

  /** Controls with their fields and steps. @param {number} at @returns {[Control, string, number][]} */
  #controls(at) {
    const controls = /** @type {Control[]} */ (findAll(this.root, "[data-field]"));
    return controls
      .filter((control) => control.type !== "radio" || Reflect.get(control, "checked"))
      .map((control) => [control, control.dataset.field ?? "", Number(control.dataset.step ?? at)]);
  }

  /** @param {Control} control @param {string} name */
  #value(control, name) {
    if (control.dataset.many !== undefined) {
      const all = findAll(this.root, `[data-field="${name}"]:checked`, HTMLInputElement);
      return all.map(({ value }) => value).join(", ");
    }
    return control.type === "checkbox" ? String(Reflect.get(control, "checked")) : control.value;
  }

  /** @param {Answer} answer */
  #show({ composition, address, parts }) {
    const { activeElement } = document;
    const isOpen = this.root.querySelector("#new-all")?.hasAttribute("open") ?? false;
    this.#composition = composition;
    for (const id of Object.keys(parts).sort((id) => (id === "new-form" ? -1 : 1))) {
      const part = this.root.querySelector(`#${id}`);
      if (part && part.innerHTML !== parts[id]) part.innerHTML = parts[id];
    }
    this.root.querySelector("#new-all")?.toggleAttribute("open", isOpen || this.#hidesProblem());
    if (activeElement?.id && !activeElement.isConnected)
      document.getElementById(activeElement.id)?.focus();
    if (parts["new-form"]) find(this.root, "#new-name", HTMLInputElement).value = composition.name;
    history.replaceState(history.state, "", address);
  }

  #hidesProblem() {
    return this.root.querySelector("#new-all [id^='message-'] > *") !== null;
  }
}

/** Fields of the shown step whose text differs. @param {Composition} before @param {Composition} now @returns {[string, string][]} */
function changes({ steps, at }, now) {
  return Object.entries(now.steps[at].values).filter(
    ([name, text]) => steps[at].values[name] !== text,
  );
}

/** @param {EventTarget | null} target @returns {target is HTMLSelectElement} */
const isOther = (target) =>
  target instanceof HTMLSelectElement && Boolean(target.selectedOptions[0]?.dataset.other);

/** A text box in place of a list, for another value. @param {HTMLSelectElement} list */
function typed(list) {
  const box = window.slimscope.create("input", { id: list.id, autocomplete: "off" });
  Object.assign(box.dataset, list.dataset);
  list.replaceWith(box);
  box.focus();
}

/** @param {string} textContent */
const problem = (textContent) =>
  window.slimscope.create("p", { className: "problem", textContent });

/** @param {Response} response */
async function words(response) {
  const text = await response.text();
  try {
    const { what, why, do: remedy } = JSON.parse(text);
    return [what, why, remedy].filter(Boolean).join(" ");
  } catch {
    return text.slice(0, 300);
  }
}
