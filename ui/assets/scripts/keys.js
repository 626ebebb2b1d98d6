/* Keyboard shortcuts and search, on every page. The shortcuts are defined in ui/keyboard.py and come
   as JSON in the header. */
(() => {
  const { closest, create, dialog, find } = window.slimscope;
  const CHORD_MS = 1500; // between the two keys of a shortcut such as "g w"
  const SEARCH_MS = 120; // after the last letter

  /** @param {KeyboardEvent} event */
  const isTyping = (event) =>
    (event.target instanceof HTMLElement && event.target.isContentEditable) ||
    Boolean(closest(event, "input, textarea, select, [role='textbox']"));

  /* The card of the chart under the pointer, else of the one with the focus. */
  const chartCard = () =>
    [...document.querySelectorAll(".card:has([data-full])")].findLast(
      (card) => card.matches(":fullscreen, :hover") || card.contains(document.activeElement),
    );

  /* --- shortcuts --------------------------------------------------------------------------- */

  /** A button that asks for permission to notify. */
  function notifyButton() {
    const button = create("button", { textContent: "Notify me when runs end" });
    button.onclick = async () => {
      await Notification.requestPermission();
      button.remove();
    };
    return button;
  }

  /** Lists all shortcuts. @param {Shortcut[]} shortcuts */
  function sheet(shortcuts) {
    const box = dialog(
      "keys",
      '<h2>Keyboard shortcuts</h2><dl></dl><p><a href="help">Glossary and metrics</a><button autofocus>Close</button></p>',
    );
    box.ariaLabel = "Keyboard shortcuts";
    for (const [keys, effect] of shortcuts) {
      const name = create("dt");
      name.append(...keys.split(" ").map((key) => create("kbd", { textContent: key })));
      find(box, "dl").append(name, create("dd", { textContent: effect }));
    }
    const close = find(box, "p button");
    close.onclick = () => box.close();
    if (window.isSecureContext && window.Notification?.permission === "default")
      close.before(notifyButton());
    box.onclose = () => box.remove();
    box.showModal();
  }

  /**
   * @param {Shortcut[]} shortcuts
   * @param {() => void} focusSearch
   */
  function listen(shortcuts, focusSearch) {
    const addresses = new Map(shortcuts.map(([keys, , address]) => [keys, address]));
    const chords = [...addresses.keys()].filter((keys) => keys.includes(" "));
    let first = "";
    let timer = 0;

    /** Carries out what was pressed; false where it is no shortcut. @type {(key: string) => boolean} */
    function act(key) {
      const pressed = first ? `${first} ${key}` : key;
      const address = addresses.get(pressed);
      first = "";
      clearTimeout(timer);
      if (address) window.location.href = address;
      else if (key === "/") focusSearch();
      else if (key === "?") sheet(shortcuts);
      else if (pressed === "p") window.slimscope.present();
      else if (pressed === "f") window.slimscope.fullScreen(chartCard());
      else return false;
      return true;
    }

    document.addEventListener("keydown", (event) => {
      const control = event.ctrlKey || event.metaKey;
      if (control && event.key.toLowerCase() === "k") {
        event.preventDefault();
        return focusSearch();
      }
      if (control || event.altKey || event.isComposing || isTyping(event)) return;
      if (document.querySelector("dialog[open], [popover]:popover-open")) return;
      if (act(event.key)) event.preventDefault();
      else if (chords.some((keys) => keys.startsWith(`${event.key} `))) {
        first = event.key;
        timer = setTimeout(() => {
          first = "";
        }, CHORD_MS);
      }
    });
  }

  /* --- search ------------------------------------------------------------------------------ */

  class SearchBox {
    /** @type {SearchHit[]} */
    hits = [];
    active = -1;
    asked = 0;
    timer = 0;

    /**
     * @param {HTMLElement} box
     * @param {[name: string, address: string][]} pages
     */
    constructor(box, pages) {
      this.pages = pages;
      this.input = find(box, "input", HTMLInputElement);
      this.list = find(box, "ul");
      if (matchMedia("(max-width: 640px)").matches)
        this.input.placeholder = "Search"; // no keys there
      else if (!/^Mac|^iP/.test(navigator.platform)) this.input.placeholder = "Search  Ctrl K";
      this.input.oninput = () => {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.look(), SEARCH_MS);
      };
      this.input.onfocus = () => {
        if (this.input.value.trim()) this.look();
      };
      this.input.onblur = () => this.close();
      this.input.onkeydown = (event) => this.keyPressed(event);
    }

    focus() {
      this.input.focus();
      this.input.select();
    }

    close() {
      this.list.hidden = true;
      this.hits = [];
      this.active = -1;
      this.input.setAttribute("aria-expanded", "false");
      this.input.removeAttribute("aria-activedescendant");
    }

    /** @param {number} place */
    mark(place) {
      this.active = place;
      [...this.list.children].forEach((item, i) =>
        item.setAttribute("aria-selected", String(i === place)),
      );
      const item = this.list.children[place];
      if (!item) return;
      this.input.setAttribute("aria-activedescendant", item.id);
      item.scrollIntoView({ block: "nearest" });
    }

    /** @param {SearchHit[]} hits */
    show(hits) {
      this.hits = hits;
      this.list.replaceChildren(
        ...hits.map(({ title, about }, i) => {
          const item = create("li", { id: `search-${i}`, role: "option" });
          item.append(create("b", { textContent: title }), create("span", { textContent: about }));
          item.onpointerdown = (event) => {
            event.preventDefault();
            this.open(i);
          };
          return item;
        }),
      );
      this.list.hidden = false;
      this.input.setAttribute("aria-expanded", "true");
      this.mark(0);
    }

    /** @param {number} place */
    open(place) {
      if (this.hits[place]) window.location.href = this.hits[place].to;
    }

    async look() {
      const words = this.input.value.trim();
      const request = ++this.asked;
      if (!words) return this.close();
      const query = encodeURIComponent(words);
      /** @type {SearchHit[]} */
      let hits = [];
      try {
        hits = await (await fetch(`slimscope/search?q=${query}`)).json();
      } catch {
        /* the status line says that the server is away */
      }
      if (request !== this.asked || document.activeElement !== this.input) return;
      const pages = this.pages
        .filter(([name]) => name.toLowerCase().startsWith(words.toLowerCase()))
        .map(([name, to]) => ({ title: name, about: "page", to }));
      const filter = { title: "Filter runs", about: `by ${words}`, to: `runs?q=${query}` };
      this.show([...pages, ...hits, filter]);
    }

    /** @param {KeyboardEvent} event */
    keyPressed(event) {
      const { length } = this.hits;
      const isArrow = event.key === "ArrowDown" || event.key === "ArrowUp";
      if (isArrow && length) {
        event.preventDefault();
        this.mark((this.active + (event.key === "ArrowDown" ? 1 : length - 1)) % length);
      } else if (event.key === "Enter") {
        event.preventDefault();
        this.open(this.active);
      } else if (event.key === "Escape") {
        if (this.list.hidden) this.input.blur();
        else this.close();
      }
    }
  }

  /** Called once a page, with the header. @param {HTMLElement} element */
  function keyboard(element) {
    const { pages, keys } = find(element, "header").dataset;
    const search = new SearchBox(find(element, ".search"), JSON.parse(pages ?? "[]"));
    /** @type {Shortcut[]} */
    const shortcuts = JSON.parse(keys ?? "[]");
    find(element, "#frame-keys").onclick = () => sheet(shortcuts);
    find(element, "#frame-share").onclick = () => window.slimscope.share();
    listen(shortcuts, () => search.focus());
  }

  Object.assign(window.slimscope, { keyboard });
})();
