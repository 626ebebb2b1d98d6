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

/** Writes a text only if it has changed, because writing causes a new layout. @param {Element} element @param {string} words */
export function tell(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** Message of a thrown value. @param {unknown} error */
export const reason = (error) => (error instanceof Error ? error.message : String(error));
