"""HTML with buttons in it: what a page shows, and what people do with it.

The state of a view is its address. A button with `data-view` writes its JSON into the address and
raises `view`; the handler reads the address. A button with `data-do` and `data-run` raises `act`,
after a question when it has `data-ask`. A button with `data-copy` copies.

Gradio patches the old nodes with the new HTML, so the focus stays where it was. The question is
asked in a dialog outside the patched part, so a redraw can neither close it nor change its run.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.frame import READER

LATEST: dict[str, Any] = {**READER, "trigger_mode": "always_last"}  # options of such readers
JS = """
const dialog = document.querySelector('dialog.ask') || document.createElement('dialog');
if (!dialog.isConnected) {
  dialog.className = 'ask';
  dialog.innerHTML = '<p></p><form method="dialog"><button value="no" autofocus>Keep it</button>'
    + '<button value="yes" class="stop"></button></form>';
  document.body.append(dialog);
}
const ask = (question, verb) => new Promise((answer) => {
  dialog.querySelector('p').textContent = question;
  dialog.querySelector('.stop').textContent = verb;
  dialog.returnValue = 'no';
  dialog.onclose = () => answer(dialog.returnValue === 'yes');
  dialog.showModal();
});
const copy = async (button) => {
  const words = button.textContent;
  try { await navigator.clipboard.writeText(button.dataset.copy); button.textContent = 'Copied'; }
  catch { button.textContent = 'Press Ctrl+C';
    const text = document.createRange(); text.selectNode(button.parentElement);
    getSelection().removeAllRanges(); getSelection().addRange(text); }
  setTimeout(() => { button.textContent = words; }, 1500);
};
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button');
  if (!button || button.disabled) return;
  const data = { ...button.dataset };
  if (data.copy) return copy(button);
  if (data.view) { slimscope.address(JSON.parse(data.view)); trigger('view', {}); }
  if (data.do && (!data.ask || await ask(data.ask, button.textContent.trim())))
    trigger('act', { do: data.do, run: data.run, file: data.file });
});
"""


class Board(gr.HTML):
    """Shows HTML and reports what is done in it. Events: `view`, `act`; of the latter
    `event._data` is `{"do", "run", "file"}`, sent by the browser and therefore to be checked."""

    def __init__(self, value: str = "", **options: Any) -> None:
        super().__init__(value, js_on_load=JS, apply_default_css=False, **options)
