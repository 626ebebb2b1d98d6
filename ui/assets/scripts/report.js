/* A report: its blocks, each drawn once and again only when it has changed. */
(() => {
  const { find } = window.slimscope;

  /** @param {ReportBlock} block */
  function build(block) {
    const shell = document.createElement("template");
    shell.innerHTML = block.html;
    const node = find(shell.content, "*");
    const { figure } = block;
    const none = () => {};
    if (figure)
      requestAnimationFrame(() =>
        // in the page, so that it has a width
        window.slimscope.plot(node, { value: figure }, none, none),
      );
    return node;
  }

  /** @type {Slimscope["report"]} */
  function report(element, props, watch) {
    const head = find(element, ".report-top");
    const list = find(element, ".report-blocks");
    /** @type {Map<string, {text: string, node: HTMLElement}>} */
    const drawn = new Map(); // by id

    /** The block of an id, built anew where it has changed. @param {ReportBlock} block */
    function nodeOf(block) {
      const text = JSON.stringify(block);
      const before = drawn.get(block.id);
      if (before?.text === text) return before.node;
      before?.node.remove();
      const node = build(block);
      drawn.set(block.id, { text, node });
      return node;
    }

    /** The data of the button that has the focus. */
    function focused() {
      const { activeElement } = document;
      const isOurs = activeElement instanceof HTMLElement && element.contains(activeElement);
      return isOurs && activeElement.dataset.do ? { ...activeElement.dataset } : null;
    }

    /** Gives the focus to the button that took the place of another. @param {DOMStringMap} button */
    function focus({ do: action, file }) {
      const same = file ? `[data-do="${action}"][data-file="${file}"]` : `[data-do="${action}"]`;
      const other = file && element.querySelector(`[data-file="${file}"]`);
      const button = element.querySelector(same) ?? other;
      if (button instanceof HTMLElement) button.focus();
    }

    function show() {
      const { top = "", blocks = [] } = props.value ?? {};
      const before = focused();
      if (head.innerHTML !== top) head.innerHTML = top;
      const ids = new Set(blocks.map((block) => block.id));
      for (const [id, { node }] of drawn) {
        if (ids.has(id)) continue;
        node.remove();
        drawn.delete(id);
      }
      blocks.forEach((block, place) => {
        const node = nodeOf(block);
        if (list.children[place] !== node) list.insertBefore(node, list.children[place] ?? null);
      });
      if (before && document.activeElement === document.body) focus(before);
    }

    watch("value", show);
    show();
  }

  /**
   * Goes to the address it is given.
   * @type {Slimscope["leave"]}
   */
  function leave(props, watch) {
    watch("value", () => {
      if (props.value) window.location.href = props.value;
    });
  }

  Object.assign(window.slimscope, { report, leave });
})();
