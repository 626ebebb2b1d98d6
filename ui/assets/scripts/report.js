/* A report: its blocks, each drawn once and again only when it has changed. */
(() => {
  function report(element, props, watch) {
    const head = element.querySelector(".report-top"),
      list = element.querySelector(".report-blocks");
    const kept = new Map(); // id -> { text, node }

    function built(block) {
      const shell = document.createElement("template");
      shell.innerHTML = block.html;
      const node = shell.content.firstElementChild;
      if (block.figure)
        requestAnimationFrame(() =>
          // in the page, so that it has a width
          window.slimscope.plot(
            node,
            { value: block.figure },
            () => {},
            () => {},
          ),
        );
      return node;
    }

    /* The button that had the focus keeps it in the block that takes the place of its own. */
    function focused() {
      const { do: action, file } = document.activeElement?.dataset ?? {};
      return action && element.contains(document.activeElement) ? [action, file] : null;
    }

    function focus([action, file]) {
      const same = file ? `[data-do="${action}"][data-file="${file}"]` : `[data-do="${action}"]`;
      const other = file ? `[data-file="${file}"]` : "";
      (element.querySelector(same) ?? (other && element.querySelector(other)))?.focus();
    }

    function show() {
      const { top = "", blocks = [] } = props.value || {},
        before = focused();
      if (head.innerHTML !== top) head.innerHTML = top;
      const wanted = new Set(blocks.map((block) => block.id));
      for (const [id, each] of kept) {
        if (wanted.has(id)) continue;
        each.node.remove();
        kept.delete(id);
      }
      blocks.forEach((block, place) => {
        const text = JSON.stringify(block),
          known = kept.get(block.id);
        if (known?.text !== text) {
          known?.node.remove();
          kept.set(block.id, { text, node: built(block) });
        }
        const { node } = kept.get(block.id);
        if (list.children[place] !== node) list.insertBefore(node, list.children[place] ?? null);
      });
      if (before && document.activeElement === document.body) focus(before);
    }

    watch("value", show);
    show();
  }

  /* Goes to the address it is given. */
  function leave(props, watch) {
    watch("value", () => {
      if (props.value) window.location.href = props.value;
    });
  }

  Object.assign(window.slimscope, { report, leave });
})();
