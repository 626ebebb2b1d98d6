/* Gradio's controls by keyboard, where it leaves gaps. */
(() => {
  /* A list handles its keys late: after Tab has left it, it would open again and stay open. And a
     long one would catch the focus and take it along when it closes. */
  window.addEventListener("keydown", (event) => {
    const input = event.key === "Tab" && event.target.closest(".secondary-wrap [role='combobox']");
    if (!input) return;
    event.stopPropagation();
    const list = document.getElementById(input.getAttribute("aria-controls"));
    if (list) list.tabIndex = -1;
  }, { capture: true });

  /* Every radio button of a group has a name of its own, so arrow keys would not move between them
     and each would be a stop of the Tab key. Gradio names the taken ones anew at every choice. */
  function grouped(input) {
    const group = input.matches("input[type='radio']") && input.closest("fieldset[id]");
    if (!group || input.name === group.id) return null;
    const radios = [...group.querySelectorAll("input[type='radio']")];
    const taken = radios.find((each) => each.checked);
    for (const each of radios) each.name = group.id;
    if (taken) taken.checked = true;
    return taken;
  }

  document.addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow")) grouped(event.target);
  }, { capture: true });

  document.addEventListener("focusin", (event) => {
    const taken = grouped(event.target);
    if (taken && event.target !== taken && !event.target.matches(":hover")) taken.focus();
  });
})();
