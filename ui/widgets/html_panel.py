"""HTML with buttons in it: what a page shows, and what people do with it.

The state of a view is its address. A button with `data-view` writes its JSON into the address and
raises `view`; the handler reads the address. A button with `data-toggle="NAME"` puts its
`data-value` into the list NAME of the address, or takes it out, and raises `view` too. A button
with `data-do` and `data-run` raises `act`, after a question when it has `data-ask`, or one that is
answered in words when it has `data-prompt`. A button with `data-copy` copies that text, an empty
one the address of the page.

Gradio patches the old nodes with the new HTML, so the focus stays where it was. The question is
asked in a dialog outside the patched part, so a redraw can neither close it nor change its run.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.frame import SILENT_EVENT

LATEST: dict[str, Any] = {**SILENT_EVENT, "trigger_mode": "always_last"}  # options of such readers
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
const written = (question, verb, words) => new Promise((answer) => {
  const paper = document.createElement('dialog');
  paper.className = 'ask';
  paper.innerHTML = '<form method="dialog"><label><span></span><textarea rows="1"></textarea>'
    + '</label><button value="yes"></button><button value="no" formnovalidate>Never mind</button>'
    + '</form>';
  const text = paper.querySelector('textarea'), yes = paper.querySelector('[value="yes"]');
  paper.querySelector('span').textContent = question;
  [yes.textContent, text.value] = [verb, words];
  text.rows = words.includes('\\n') || words.length > 60 ? 6 : 1;
  text.onkeydown = (event) => {
    if (event.key !== 'Enter' || event.shiftKey) return;
    event.preventDefault();
    yes.click();
  };
  paper.onclose = () => {
    answer(paper.returnValue === 'yes' ? text.value : null);
    paper.remove();
  };
  document.body.append(paper);
  paper.showModal();
  text.select();
});
const toggled = (name, value) => {
  const held = (new URL(window.location).searchParams.get(name) || '').split(',').filter(Boolean);
  const kept = held.filter((one) => one !== value);
  slimscope.address({ [name]: kept.length < held.length ? kept : [...held, value] });
};
const copy = async (button) => {
  const words = button.textContent;
  const copied = button.dataset.copy || window.location.href;
  try { await navigator.clipboard.writeText(copied); button.textContent = 'Copied'; }
  catch { button.textContent = 'Press Ctrl+C';
    const text = document.createRange(); text.selectNode(button.parentElement);
    getSelection().removeAllRanges(); getSelection().addRange(text); }
  setTimeout(() => { button.textContent = words; }, 1500);
};
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button');
  if (!button || button.disabled) return;
  const data = { ...button.dataset };
  if ('copy' in data) return copy(button);
  const verb = button.textContent.trim();
  if (data.toggle) toggled(data.toggle, data.value);
  if (data.view) slimscope.address(JSON.parse(data.view));
  if (data.toggle || data.view) trigger('view', {});
  if (!data.do || (data.ask && !await ask(data.ask, verb))) return;
  const text = data.prompt ? await written(data.prompt, verb, data.words || '') : '';
  if (text !== null) trigger('act', { do: data.do, run: data.run, file: data.file, text });
});
"""


class HtmlPanel(gr.HTML):
    """Shows HTML and reports what is done in it. Events: `view`, `act`; of the latter
    `event._data` is `{"do", "run", "file", "text"}`, sent by the browser and therefore to be
    checked."""

    def __init__(self, value: str = "", **options: Any) -> None:
        super().__init__(value, js_on_load=JS, apply_default_css=False, **options)
