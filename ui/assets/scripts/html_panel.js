/* Panels of HTML with buttons in them (ui/widgets/html_panel.py says what their attributes do). */
(() => {
  const { closest, dialog, find } = window.slimscope;
  const LOOK_MS = [800, 2500]; // after an action, which may have started something
  const COPIED_MS = 1500;

  /**
   * Shows a dialog; its answer is true when it is closed with "yes".
   * @param {HTMLDialogElement} box
   * @returns {Promise<boolean>}
   */
  function answered(box) {
    return new Promise((answer) => {
      box.onclose = () => {
        answer(box.returnValue === "yes");
        box.remove();
      };
      box.showModal();
    });
  }

  /**
   * @param {string} question
   * @param {string} verb
   */
  function confirmed(question, verb) {
    const box = dialog(
      "confirm",
      `<p></p><form method="dialog">
      <button value="no" autofocus>Keep it</button><button value="yes" class="stop"></button></form>`,
    );
    find(box, "p").textContent = question;
    find(box, ".stop").textContent = verb;
    return answered(box);
  }

  /**
   * The text a person enters; null when they cancel. In a field of several lines, Enter begins another and Ctrl+Enter
   * ends the text.
   * @param {string} question
   * @param {string} verb
   * @param {string} initial
   * @param {number} lines
   */
  async function entered(question, verb, initial, lines) {
    const box = dialog(
      "",
      `<form method="dialog">
      <label><span></span><textarea rows="1"></textarea></label>
      <button value="yes"></button><button value="no" formnovalidate>Cancel</button></form>`,
    );
    const field = find(box, "textarea", HTMLTextAreaElement);
    const yes = find(box, '[value="yes"]');
    find(box, "span").textContent = question;
    yes.textContent = lines ? "Save" : verb;
    field.value = initial;
    field.rows = lines || (initial.includes("\n") || initial.length > 60 ? 6 : 1);
    field.onkeydown = (event) => {
      const isNewLine = event.shiftKey || (lines && !event.ctrlKey && !event.metaKey);
      if (event.key !== "Enter" || isNewLine) return;
      event.preventDefault();
      yes.click();
    };
    const answer = answered(box);
    if (lines)
      field.setSelectionRange(initial.length, initial.length); // a long text is rarely replaced
    else field.select();
    return (await answer) ? field.value : null;
  }

  /**
   * Adds a value to a list in the address, or removes it.
   * @param {string} name
   * @param {string} value
   */
  function toggle(name, value) {
    const list = new URLSearchParams(location.search).get(name) ?? "";
    const before = list.split(",").filter(Boolean);
    const others = before.filter((item) => item !== value);
    window.slimscope.address({
      [name]: others.length < before.length ? others : [...before, value],
    });
  }

  /** @param {HTMLElement} button */
  async function copy(button) {
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.copy || window.location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
      getSelection()?.selectAllChildren(button.parentElement ?? button);
    }
    setTimeout(() => {
      button.textContent = label;
    }, COPIED_MS);
  }

  /** @type {Slimscope["htmlPanel"]} */
  function htmlPanel(element, viewed, acted) {
    element.addEventListener("click", async (event) => {
      const button = closest(event, "button", HTMLButtonElement);
      if (!button || button.disabled) return;
      const data = { ...button.dataset };
      if ("copy" in data) return copy(button);
      const verb = button.textContent.trim();
      if (data.toggle) toggle(data.toggle, data.value ?? "");
      if (data.view) window.slimscope.address(JSON.parse(data.view));
      if (data.toggle || data.view) viewed();
      if (!data.do || (data.ask && !(await confirmed(data.ask, verb)))) return;
      const text = data.prompt
        ? await entered(data.prompt, verb, data.words ?? "", Number(data.lines ?? 0))
        : "";
      if (text === null) return;
      acted({ do: data.do, run: data.run, file: data.file, text });
      for (const wait_ms of LOOK_MS) setTimeout(() => window.slimscope.look?.(), wait_ms);
    });
  }

  Object.assign(window.slimscope, { htmlPanel });
})();
