/* Keyboard shortcuts and search, on every page. The shortcuts are defined in ui/frame.py and come
   as JSON in the header. */
(() => {
  const { closest, create, dialog, find, findAll } = window.slimscope;
  const CHORD_MS = 1500; // between the two keys of a shortcut such as "g w"
  const SEARCH_MS = 120; // after the last letter

  /** @param {KeyboardEvent} event */
  const isTyping = (event) =>
    (event.target instanceof HTMLElement && event.target.isContentEditable) ||
    // a field of a dialog that has just closed has the focus until the next frame
    Boolean(closest(event, "input, textarea, select, [role='textbox']")?.checkVisibility());

  /* Card of the chart under the pointer, or else with the focus. */
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

  /** The drawer of help: shortcuts, terms and metrics, and a field that filters them. */
  class Help {
    /** @type {HTMLDialogElement | null} */
    drawer = null;
    /** @type {Promise<void> | null} */
    content = null;

    /** @param {Shortcut[]} shortcuts */
    constructor(shortcuts) {
      this.shortcuts = shortcuts;
      document.addEventListener("click", (event) => {
        const link = closest(event, "a[href^='#term-'], a[href='#help']", HTMLAnchorElement);
        if (!link) return;
        event.preventDefault();
        this.open(link.hash);
      });
      if (/^#(help|term-)/.test(location.hash)) this.open(location.hash);
    }

    /** @param {string} hash of a term, or "" */
    async open(hash = "") {
      const drawer = (this.drawer ??= this.build());
      if (!drawer.open) drawer.showModal(); // at once: keys typed meanwhile are for its field
      const field = find(drawer, "input", HTMLInputElement);
      field.value = "";
      field.focus();
      await (this.content ??= this.load(find(drawer, "div")));
      this.filter();
      const term = document.getElementById(hash.slice(1));
      term?.scrollIntoView({ block: "center" });
      for (const entry of findAll(drawer, ".found")) entry.classList.remove("found");
      term?.classList.add("found");
    }

    build() {
      const drawer = dialog(
        "help",
        '<header><h2>Help</h2><input role="searchbox" placeholder="Search help" aria-label="Search help"><button type="button" aria-label="Close">✕</button></header><p class="quiet" role="status">Nothing found.</p><div></div>',
      );
      drawer.ariaLabel = "Help";
      find(drawer, "header button").onclick = () => drawer.close();
      find(drawer, "input").oninput = () => this.filter();
      drawer.onclick = (event) => {
        if (event.target === drawer) drawer.close(); // beside it
      };
      return drawer;
    }

    /** @param {HTMLElement} content */
    async load(content) {
      try {
        content.innerHTML = await (await fetch("slimscope/help")).text();
      } catch {
        content.innerHTML =
          '<section><h3>Keyboard shortcuts</h3><dl class="words" id="help-keys"></dl></section>';
      }
      for (const [keys, effect] of this.shortcuts) {
        const name = create("dt");
        name.append(...keys.split(" ").map((key) => create("kbd", { textContent: key })));
        const entry = create("div");
        entry.append(name, create("dd", { textContent: effect }));
        find(content, "#help-keys").append(entry);
      }
      if (window.isSecureContext && window.Notification?.permission === "default")
        content.append(notifyButton());
    }

    /** Hides entries that do not contain all words of the field. */
    filter() {
      if (!this.drawer) return;
      const words = find(this.drawer, "input", HTMLInputElement).value.toLowerCase().split(/\s+/);
      for (const section of findAll(this.drawer, "section")) {
        const title = section.querySelector("h3")?.textContent ?? "";
        const entries = findAll(section, ".words > div");
        for (const entry of entries) {
          const text = `${title} ${entry.textContent}`.toLowerCase();
          entry.hidden = !words.every((word) => text.includes(word));
        }
        section.hidden = entries.every((entry) => entry.hidden) && words[0] !== "";
      }
    }
  }

  /**
   * @param {Shortcut[]} shortcuts
   * @param {() => void} focusSearch
   * @param {Help} help
   */
  function listen(shortcuts, focusSearch, help) {
    const addresses = new Map(shortcuts.map(([keys, , address]) => [keys, address]));
    const chords = [...addresses.keys()].filter((keys) => keys.includes(" "));
    let first = "";
    let timer = 0;

    /** Executes a shortcut; returns false if the keys are not one. @type {(key: string) => boolean} */
    function act(key) {
      const pressed = first ? `${first} ${key}` : key;
      const address = addresses.get(pressed);
      first = "";
      clearTimeout(timer);
      if (address) window.location.href = address;
      else if (key === "/") focusSearch();
      else if (key === "?") help.open();
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
     * @param {Help} help
     */
    constructor(box, pages, help) {
      this.pages = pages;
      this.help = help;
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

    /** Actions of the browser itself. @type {SearchHit[]} */
    get actions() {
      const press = (/** @type {string} */ id) => () => document.getElementById(id)?.click();
      return [
        { title: "Open help", about: "action", to: () => this.help.open() },
        { title: "Theme: dark or light", about: "action", to: press("frame-theme") },
        { title: "Share this view", about: "action", to: press("frame-share") },
        { title: "Present this view", about: "action", to: () => window.slimscope.present() },
      ];
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
      const hit = this.hits[place];
      if (!hit) return;
      this.close();
      if (typeof hit.to !== "string") hit.to();
      else if (hit.to.startsWith("#")) this.help.open(hit.to);
      else window.location.href = hit.to;
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
      const starts = (/** @type {string} */ name) =>
        ` ${name.toLowerCase()}`.includes(` ${words.toLowerCase()}`);
      const pages = this.pages
        .filter(([name]) => starts(name))
        .map(([name, to]) => ({ title: name, about: "page", to }));
      const actions = this.actions.filter(({ title }) => starts(title));
      const found = [...pages, ...actions, ...hits];
      const title = found.length ? "Filter runs" : "Nothing found: filter runs";
      this.show([...found, { title, about: `by ${words}`, to: `runs?q=${query}` }]);
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

  /** Called once per page, with the header. @param {HTMLElement} element */
  function keyboard(element) {
    const { pages, keys } = find(element, "header").dataset;
    /** @type {Shortcut[]} */
    const shortcuts = JSON.parse(keys ?? "[]");
    const help = new Help(shortcuts);
    const search = new SearchBox(find(element, ".search"), JSON.parse(pages ?? "[]"), help);
    find(element, "#frame-keys").onclick = () => help.open();
    find(element, "#frame-share").onclick = () => window.slimscope.share();
    listen(shortcuts, () => search.focus(), help);
  }

  Object.assign(window.slimscope, { keyboard });
})();
