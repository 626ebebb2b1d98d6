/* Fixes for Gradio's controls: keyboard navigation, and the direction in which lists open. */
(() => {
  const { closest, findAll } = window.slimscope;
  const MIN_LIST_PX = 240;
  const GAP_PX = 4;

  /* A list handles its keys late: after Tab has left it, it would open again and stay open. And a
     long one would catch the focus and take it along when it closes. */
  window.addEventListener(
    "keydown",
    (event) => {
      const input = event.key === "Tab" && closest(event, ".secondary-wrap [role='combobox']");
      if (!input) return;
      event.stopPropagation();
      const list = document.getElementById(input.getAttribute("aria-controls") ?? "");
      if (list) list.tabIndex = -1;
    },
    { capture: true },
  );

  /**
   * Gives the radio buttons of a group one name, and returns the checked one. Gradio names each differently, so arrow
   * keys would not move between them and each would be a stop of the Tab key; it renames them at every choice.
   * @param {Event} event
   */
  function group(event) {
    const input = closest(event, "input[type='radio']", HTMLInputElement);
    const fieldset = input?.closest("fieldset[id]");
    if (!fieldset || input?.name === fieldset.id) return null;
    const radios = findAll(fieldset, "input[type='radio']", HTMLInputElement);
    const checked = radios.find((radio) => radio.checked);
    for (const radio of radios) radio.name = fieldset.id;
    if (checked) checked.checked = true;
    return checked ?? null;
  }

  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key.startsWith("Arrow")) group(event);
    },
    { capture: true },
  );

  document.addEventListener("focusin", (event) => {
    const checked = group(event);
    const { target } = event;
    if (checked && target instanceof Element && target !== checked && !target.matches(":hover"))
      checked.focus();
  });

  /**
   * Opens the list of a field downwards where it fits. Gradio opens it where there is more room, so in the lower half
   * of a page over what is above, and places it again whenever the page scrolls.
   * @param {Element} block
   * @param {Element} field
   */
  function openBelow(block, field) {
    const list = block.querySelector(".options");
    if (!(list instanceof HTMLElement) || !parseFloat(list.style.bottom)) return;
    const { bottom } = field.getBoundingClientRect();
    const room = window.innerHeight - bottom - 3 * GAP_PX;
    if (room < Math.min(MIN_LIST_PX, list.firstElementChild?.scrollHeight ?? 0)) return;
    const top = `${bottom + GAP_PX}px`;
    Object.assign(list.style, { top, bottom: "auto", maxHeight: `${room}px` });
  }

  const watchedFields = new WeakSet();
  document.addEventListener("focusin", (event) => {
    const field = closest(event, ".secondary-wrap")?.closest(".wrap");
    const block = field?.closest(".block");
    if (!field || !block) return;
    openBelow(block, field); // the list may be there already
    if (watchedFields.has(field)) return;
    watchedFields.add(field);
    new MutationObserver(() => openBelow(block, field)).observe(block, {
      childList: true,
      subtree: true,
      attributes: true,
      attributeFilter: ["style"],
    });
  });
})();
