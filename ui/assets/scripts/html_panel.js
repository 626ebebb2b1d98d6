/* Panels of HTML with buttons in them (ui/widgets/html.py describes their attributes). */
(() => {
  const { closest, dialog, find, findAll } = window.slimscope;
  const LOOK_MS = [800, 2500]; // after an action, which may have started a run
  const COPIED_MS = 1500;

  /**
   * Shows a dialog; resolves to true if it is confirmed.
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
   * Asks for a text; resolves to null if the dialog is cancelled. In a field of several lines, Enter begins another and Ctrl+Enter
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
   * Adds a value to a list in the URL, or removes it.
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

  /**
   * Lets people move the items of a list `[data-order]` by dragging their handles or with the arrow keys; `moved` gets
   * the item's run and the run that is then above it, "" at the top.
   * @param {HTMLElement} element
   * @param {(action: string, run: string, above: string) => void} moved
   */
  function orderable(element, moved) {
    /** @type {HTMLElement | null} */
    let dragged = null;

    /** @param {Event} event */
    const itemOf = (event) => closest(event, "[data-order] > [data-run]");
    const items = () => findAll(element, "[data-order] > [data-run]");

    /**
     * @param {HTMLElement} item
     * @param {number} place among the other items
     */
    function put(item, place) {
      const others = items().filter((other) => other !== item);
      const action = item.parentElement?.dataset.order ?? "";
      moved(action, item.dataset.run ?? "", others[place - 1]?.dataset.run ?? "");
    }

    function end() {
      dragged?.classList.remove("dragged");
      for (const item of items()) item.classList.remove("above", "below");
      dragged = null;
      window.slimscope.busy = false;
    }

    element.addEventListener("pointerdown", (event) => {
      const item = closest(event, ".handle") && itemOf(event);
      if (item) item.draggable = true;
    });
    element.addEventListener("dragstart", (event) => {
      dragged = itemOf(event);
      dragged?.classList.add("dragged");
      window.slimscope.busy = Boolean(dragged);
    });
    element.addEventListener("dragover", (event) => {
      const item = itemOf(event);
      if (!dragged || !item) return;
      event.preventDefault();
      for (const other of items()) other.classList.remove("above", "below");
      item.classList.add(isAbove(event, item) ? "above" : "below");
    });
    element.addEventListener("drop", (event) => {
      const item = itemOf(event);
      if (!dragged || !item || item === dragged) return;
      event.preventDefault();
      const place = items().filter((other) => other !== dragged);
      put(dragged, place.indexOf(item) + (isAbove(event, item) ? 0 : 1));
    });
    element.addEventListener("dragend", end);
    element.addEventListener("keydown", (event) => {
      const item = closest(event, ".handle") && itemOf(event);
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!item || !step) return;
      event.preventDefault();
      const place = items().indexOf(item) + step;
      if (place >= 0 && place < items().length) put(item, place);
    });
  }

  /** Return the focus to the element that had it, when the panel is drawn anew. @param {HTMLElement} element */
  function keepFocus(element) {
    let name = "";
    element.addEventListener("focusin", ({ target }) => {
      name = target instanceof HTMLElement ? (target.dataset.focus ?? "") : "";
    });
    new MutationObserver(() => {
      const button = name && element.querySelector(`[data-focus="${name}"]`);
      const { activeElement } = document;
      if (button instanceof HTMLElement && button !== activeElement)
        if (activeElement === document.body || element.contains(activeElement)) button.focus();
    }).observe(element, { childList: true, subtree: true, attributes: true });
  }

  /**
   * @param {DragEvent} event
   * @param {HTMLElement} item
   */
  function isAbove(event, item) {
    const { top, height } = item.getBoundingClientRect();
    return event.clientY < top + height / 2;
  }

  /** @type {Slimscope["htmlPanel"]} */
  function htmlPanel(element, viewed, acted) {
    const look = () => {
      for (const wait_ms of LOOK_MS) setTimeout(() => window.slimscope.look?.(), wait_ms);
    };
    keepFocus(element);
    orderable(element, (action, run, above) => {
      acted({ do: action, run, text: above });
      look();
    });
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
        : (data.text ?? "");
      if (text === null) return;
      acted({ do: data.do, run: data.run, file: data.file, text });
      look();
    });
  }

  Object.assign(window.slimscope, { htmlPanel });
})();
