/* Elements of the page, and the functions that all pages share. */

/** @typedef {{
      address: (fields: Record<string, string>, moving?: boolean) => void,
      events: (response: Response, take: (event: import("./live.js").LiveEvent) => void) => Promise<void>,
      changed?: () => void,
      back?: () => boolean,
    }} Slimscope */

/** The object that `slimscope.js` adds to the window. @type {Slimscope} */
export const slimscope = Reflect.get(window, "slimscope");

/** First element of a class that matches a selector. Throws an Error if there is none.
    @template {Element} T
    @param {ParentNode} root
    @param {string} selector
    @param {new () => T} type
    @returns {T} */
export function need(root, selector, type) {
  const found = root.querySelector(selector);
  if (!(found instanceof type)) throw new Error(`There is no ${selector}.`);
  return found;
}

/** @param {string} words @param {() => void} act @param {Partial<HTMLButtonElement>} more */
export const button = (words, act, more = {}) =>
  Object.assign(document.createElement("button"), {
    type: "button",
    textContent: words,
    onclick: act,
    ...more,
  });

/** Clicked button of a group; null for a click next to the buttons. @param {Event} event */
export const pressed = ({ target }) => (target instanceof HTMLButtonElement ? target : null);

/** Writes a text only if it has changed, because writing causes a new layout. @param {Element} element @param {string} words */
export function tell(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** Message of a thrown value. @param {unknown} error */
export const reason = (error) => (error instanceof Error ? error.message : String(error));
