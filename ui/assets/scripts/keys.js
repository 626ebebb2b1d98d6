/* Keyboard shortcuts and search, on every page. The shortcuts are defined in ui/frame.py and come
   as JSON in the header. */
(() => {
  const typing = (target) =>
    target.isContentEditable ||
    Boolean(target.closest("input, textarea, select, [role='textbox']"));

  /* The card of the chart under the pointer, else of the one with the focus. */
  const chartCard = () =>
    [...document.querySelectorAll(".card:has([data-full])")]
      .filter(
        (card) => card.matches(":fullscreen, :hover") || card.contains(document.activeElement),
      )
      .pop();

  /* --- shortcuts --------------------------------------------------------------------------- */

  function sheet(keys) {
    const paper = window.slimscope.dialog(
      "keys",
      '<h2>Keyboard shortcuts</h2><dl></dl><p><a href="help">Glossary and metrics</a><button autofocus>Close</button></p>',
    );
    paper.ariaLabel = "Keyboard shortcuts";
    const [, list, foot] = paper.children,
      close = foot.lastChild;
    for (const [combination, effect] of keys) {
      const name = document.createElement("dt"),
        words = document.createElement("dd");
      name.append(
        ...combination.split(" ").map((key) => {
          const cap = document.createElement("kbd");
          cap.textContent = key;
          return cap;
        }),
      );
      words.textContent = effect;
      list.append(name, words);
    }
    close.onclick = () => paper.close();
    if (window.isSecureContext && window.Notification?.permission === "default") {
      const asks = document.createElement("button");
      asks.textContent = "Notify me when runs end";
      asks.onclick = async () => {
        await Notification.requestPermission();
        asks.remove();
      };
      close.before(asks);
    }
    paper.onclose = () => paper.remove();
    paper.showModal();
  }

  function listen(keys, focusSearch) {
    const places = new Map(keys.filter((each) => each[2]).map(([k, , to]) => [k, to]));
    let first = "",
      timer = 0;
    document.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
        event.preventDefault();
        return focusSearch();
      }
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      if (typing(event.target) || document.querySelector("dialog[open], [popover]:popover-open"))
        return;
      const pressed = first ? `${first} ${event.key}` : event.key;
      first = "";
      clearTimeout(timer);
      if (places.has(pressed)) window.location.href = places.get(pressed);
      else if (event.key === "/") focusSearch();
      else if (event.key === "?") sheet(keys);
      else if (pressed === "p") window.slimscope.present();
      else if (pressed === "f") window.slimscope.fullScreen(chartCard());
      else if ([...places.keys()].some((k) => k.startsWith(`${event.key} `))) {
        first = event.key;
        timer = setTimeout(() => {
          first = "";
        }, 1500);
        return;
      } else return;
      event.preventDefault();
    });
  }

  /* --- search ------------------------------------------------------------------------------ */

  function searchBox(box, pages) {
    const input = box.querySelector("input"),
      list = box.querySelector("ul");
    let options = [],
      active = -1,
      asked = 0,
      timer = 0;
    if (matchMedia("(max-width: 640px)").matches)
      input.placeholder = "Search"; // no keys there
    else if (!/^Mac|^iP/.test(navigator.platform)) input.placeholder = "Search  Ctrl K";

    function close() {
      list.hidden = true;
      options = [];
      active = -1;
      input.setAttribute("aria-expanded", "false");
      input.removeAttribute("aria-activedescendant");
    }

    function mark(place) {
      active = place;
      [...list.children].forEach((item, i) =>
        item.setAttribute("aria-selected", String(i === place)),
      );
      if (list.children[place]) {
        input.setAttribute("aria-activedescendant", list.children[place].id);
        list.children[place].scrollIntoView({ block: "nearest" });
      }
    }

    function show(found) {
      options = found;
      list.replaceChildren(
        ...found.map(({ title, about }, i) => {
          const item = document.createElement("li"),
            name = document.createElement("b"),
            more = document.createElement("span");
          item.id = `search-${i}`;
          item.setAttribute("role", "option");
          name.textContent = title;
          more.textContent = about;
          item.append(name, more);
          item.onpointerdown = (event) => {
            event.preventDefault();
            open(i);
          };
          return item;
        }),
      );
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      mark(0);
    }

    function open(place) {
      if (options[place]) window.location.href = options[place].to;
    }

    async function look() {
      const words = input.value.trim(),
        mine = ++asked;
      if (!words) return close();
      const named = pages
        .filter(([name]) => name.toLowerCase().startsWith(words.toLowerCase()))
        .map(([name, to]) => ({ title: name, about: "page", to }));
      let found = [];
      try {
        found = await (await fetch(`slimscope/search?q=${encodeURIComponent(words)}`)).json();
      } catch {
        /* the status strip says that the server is away */
      }
      if (mine !== asked || document.activeElement !== input) return;
      const more = {
        title: "Filter runs",
        about: `by ${words}`,
        to: `runs?q=${encodeURIComponent(words)}`,
      };
      show([...named, ...found, more]);
    }

    input.oninput = () => {
      clearTimeout(timer);
      timer = setTimeout(look, 120);
    };
    input.onfocus = () => {
      if (input.value.trim()) look();
    };
    input.onblur = close;
    input.onkeydown = (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step && options.length) {
        event.preventDefault();
        mark((active + step + options.length) % options.length);
      } else if (event.key === "Enter") {
        event.preventDefault();
        open(active);
      } else if (event.key === "Escape") {
        if (list.hidden) input.blur();
        else close();
      }
    };
    return () => {
      input.focus();
      input.select();
    };
  }

  /* Called once a page, with the header. */
  function keyboard(element) {
    const data = element.querySelector("header").dataset;
    const focusSearch = searchBox(element.querySelector(".search"), JSON.parse(data.pages));
    const keys = JSON.parse(data.keys);
    element.querySelector("#frame-keys").onclick = () => sheet(keys);
    element.querySelector("#frame-share").onclick = () => window.slimscope.share();
    listen(keys, focusSearch);
  }

  Object.assign(window.slimscope, { keyboard });
})();
