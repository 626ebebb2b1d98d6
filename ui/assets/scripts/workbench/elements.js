/* Elements of the page, and the functions that all pages share. */

/** @param {string} words @param {() => void} act @param {Partial<HTMLButtonElement>} more */
export const button = (words, act, more = {}) =>
  Object.assign(document.createElement("button"), {
    type: "button",
    textContent: words,
    onclick: act,
    ...more,
  });

/** @param {string} href @param {string} words */
export const link = (href, words) =>
  Object.assign(document.createElement("a"), { href, textContent: words });

/** The button of a group that was clicked; null beside the buttons. @param {Event} event */
export const pressed = ({ target }) => (target instanceof HTMLButtonElement ? target : null);

/** Writes words where they change: a browser lays out anew what is written. @param {Element} element @param {string} words */
export function tell(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** The words of anything that was thrown. @param {unknown} error */
export const reason = (error) => (error instanceof Error ? error.message : String(error));
