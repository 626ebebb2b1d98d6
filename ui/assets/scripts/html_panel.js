/* Panels of HTML with buttons in them (ui/widgets/html.py says what their attributes do). */
(() => {
  const confirmed = (question, verb) =>
    new Promise((answer) => {
      const dialog = window.slimscope.dialog(
        "confirm",
        `<p></p><form method="dialog">
      <button value="no" autofocus>Keep it</button><button value="yes" class="stop"></button></form>`,
      );
      dialog.querySelector("p").textContent = question;
      dialog.querySelector(".stop").textContent = verb;
      dialog.onclose = () => {
        answer(dialog.returnValue === "yes");
        dialog.remove();
      };
      dialog.showModal();
    });

  /* The text a person enters; null when they think better of it. In a field of several lines, Enter
     begins another and Ctrl+Enter ends the text. */
  const entered = (question, verb, initial, lines) =>
    new Promise((answer) => {
      const dialog = window.slimscope.dialog(
        "",
        `<form method="dialog">
      <label><span></span><textarea rows="1"></textarea></label>
      <button value="yes"></button><button value="no" formnovalidate>Cancel</button></form>`,
      );
      const text = dialog.querySelector("textarea"),
        yes = dialog.querySelector('[value="yes"]');
      dialog.querySelector("span").textContent = question;
      [yes.textContent, text.value] = [lines ? "Save" : verb, initial];
      text.rows = lines || (initial.includes("\n") || initial.length > 60 ? 6 : 1);
      text.onkeydown = (event) => {
        if (event.key !== "Enter" || event.shiftKey || (lines && !event.ctrlKey && !event.metaKey))
          return;
        event.preventDefault();
        yes.click();
      };
      dialog.onclose = () => {
        answer(dialog.returnValue === "yes" ? text.value : null);
        dialog.remove();
      };
      dialog.showModal();
      if (lines)
        text.setSelectionRange(initial.length, initial.length); // a long text is rarely replaced
      else text.select();
    });

  function toggle(name, value) {
    const listed = new URL(window.location).searchParams.get(name) || "";
    const before = listed.split(",").filter(Boolean);
    const others = before.filter((each) => each !== value);
    window.slimscope.address({
      [name]: others.length < before.length ? others : [...before, value],
    });
  }

  async function copy(button) {
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.copy || window.location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
      const text = document.createRange();
      text.selectNode(button.parentElement);
      getSelection().removeAllRanges();
      getSelection().addRange(text);
    }
    setTimeout(() => {
      button.textContent = label;
    }, 1500);
  }

  function htmlPanel(element, viewed, acted) {
    element.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button || button.disabled) return;
      const data = { ...button.dataset };
      if ("copy" in data) return copy(button);
      const verb = button.textContent.trim();
      if (data.toggle) toggle(data.toggle, data.value);
      if (data.view) window.slimscope.address(JSON.parse(data.view));
      if (data.toggle || data.view) viewed();
      if (!data.do || (data.ask && !(await confirmed(data.ask, verb)))) return;
      const text = data.prompt
        ? await entered(data.prompt, verb, data.words || "", Number(data.lines))
        : "";
      if (text === null) return;
      acted({ do: data.do, run: data.run, file: data.file, text });
      for (const wait of [800, 2500]) setTimeout(() => window.slimscope.look?.(), wait); // it may have started something
    });
  }

  Object.assign(window.slimscope, { htmlPanel });
})();
