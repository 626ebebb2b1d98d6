/* The playground: streams answers token by token, and sends examples on a click. The server renders the
   conversation; this page requests the answers of sections with `data-begin`. */
(() => {
  const { closest, create, events, find, findAll } = window.slimscope;
  const LOOK_MS = 100;
  const STORED_MS = 400; // until the server has stored an answer that was stopped
  const RETRY_S = 5;
  const NEAR_END_PX = 200;
  const NAME_KEY = "slimscope-name";

  /**
   * An answer in progress: its tokens, the notice while it waits, and the controller that stops it.
   * @typedef {object} Answer
   * @property {HTMLElement} strip
   * @property {number} tokens
   * @property {{notice: string, seconds: number, since: number} | null} waits `seconds`: 0 if unknown
   * @property {AbortController} stop
   * @property {boolean} isOver
   */
  /**
   * A row of the stream: tokens with the head that drafted each (negative: prompt lookup) and rejected ones, or a notice.
   * @typedef {{tokens?: [string, number][], rejected?: string[], waits?: string, about?: number}} AnswerRow
   */

  /** Answers by their query, until the page is redrawn with the stored ones. @type {Map<string, Answer>} */
  const answers = new Map();

  /** @param {string} query */
  const sectionOf = (query) => board()?.querySelector(`[data-begin="${query}"]`);
  const board = () => document.getElementById("playground-board");
  const pause = (/** @type {number} */ ms) => new Promise((done) => setTimeout(done, ms));

  /* True if the page is scrolled to its end, where it should stay. */
  const isAtEnd = () =>
    window.innerHeight + window.scrollY > document.body.scrollHeight - NEAR_END_PX;

  /** @param {number} head */
  function headClass(head) {
    if (!head) return "";
    return head < 0 ? "head-looked" : `head-${Math.min(head, 6)}`;
  }

  /**
   * @param {Answer} answer
   * @param {[string, number][]} tokens
   * @param {string} rejected
   */
  function append(answer, tokens, rejected = "") {
    const wasAtEnd = isAtEnd();
    for (const [text, head] of tokens)
      answer.strip.append(create("span", { textContent: text, className: headClass(head) }));
    answer.tokens += tokens.length;
    if (rejected.trim())
      answer.strip.append(create("s", { textContent: rejected, ariaHidden: "true" }));
    answer.waits = null;
    if (wasAtEnd) window.scrollTo({ top: document.body.scrollHeight });
  }

  /**
   * @param {Answer} answer
   * @param {string} notice
   * @param {number} seconds
   */
  function wait(answer, notice, seconds) {
    answer.waits = { notice, seconds, since: performance.now() };
  }

  /**
   * Writes an answer into its section, which may have been redrawn.
   * @param {string} query
   * @param {Answer} answer
   */
  function show(query, answer) {
    const section = sectionOf(query);
    if (!section) return;
    const strip = find(section, ".strip");
    if (strip !== answer.strip) strip.replaceWith(answer.strip);
    find(section, ".strip + p").textContent = answer.tokens ? `${answer.tokens} tokens` : "";
    showNotice(find(section, ".waits"), answer.waits);
  }

  /**
   * @param {HTMLElement} box
   * @param {Answer["waits"]} waits
   */
  function showNotice(box, waits) {
    const { notice = "", seconds = 0, since = 0 } = waits ?? {};
    const time = seconds ? ` (about ${Math.max(1, Math.round(seconds))} s)` : "…";
    const text = notice && notice + time;
    if (box.dataset.said !== text) {
      box.dataset.said = text;
      const line = create("p", { className: "quiet", role: "status", textContent: text });
      if (seconds) line.append(create("progress", { max: 1 }));
      box.replaceChildren(...(text ? [line] : []));
    }
    const bar = box.querySelector("progress");
    if (bar) bar.value = Math.min(0.97, (performance.now() - since) / 1000 / seconds);
  }

  /**
   * Streams an answer; retries while the server is overloaded.
   * @param {string} query
   * @param {Answer} answer
   */
  async function stream(query, answer) {
    const { signal } = answer.stop;
    while (!signal.aborted) {
      const response = await fetch(`slimscope/answer?${query}`, { method: "POST", signal });
      if (response.status !== 429) {
        if (!response.ok) throw new Error(response.statusText);
        return events(response, (/** @type {AnswerRow} */ row) => {
          if (row.tokens) append(answer, row.tokens, row.rejected?.[0]);
          else if (row.waits) wait(answer, row.waits, row.about ?? 0);
        });
      }
      /** @type {{error: {message: string}}} */
      const { error } = await response.json();
      const seconds = Number(response.headers.get("retry-after")) || RETRY_S;
      wait(answer, error.message, seconds);
      await pause(1000 * seconds);
    }
  }

  /** @param {string} query */
  async function begin(query) {
    const strip = create("p", { className: "strip" });
    /** @type {Answer} */
    const answer = { strip, tokens: 0, waits: null, stop: new AbortController(), isOver: false };
    answers.set(query, answer);
    wait(answer, "Starting", 0);
    let hasFailed = false;
    try {
      await stream(query, answer);
    } catch {
      hasFailed = true; // stopped, refused (the page says why), or the server is unreachable
    }
    await pause(answer.stop.signal.aborted ? STORED_MS : 0);
    answer.isOver = true;
    if ([...answers.values()].every(({ isOver }) => isOver)) {
      const redraw = board()?.querySelector(".redraw");
      if (redraw instanceof HTMLElement) redraw.click();
    }
    if (!hasFailed) return;
    await pause(1000 * RETRY_S);
    answers.delete(query);
  }

  function look() {
    const sections = findAll(board() ?? document, "#playground-board [data-begin]");
    for (const { dataset } of sections)
      if (dataset.begin && !answers.has(dataset.begin)) begin(dataset.begin);
    for (const [query, answer] of answers) {
      if (answer.isOver && !sectionOf(query)) answers.delete(query);
      else show(query, answer);
    }
  }

  /**
   * Enters a text as if a person had typed it: Svelte listens to the input event.
   * @param {HTMLInputElement | HTMLTextAreaElement} field
   * @param {string} text
   */
  function enter(field, text) {
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener("click", (event) => {
    if (closest(event, '#playground-board [data-do="stop"]'))
      for (const { stop } of answers.values()) stop.abort();
    const votes = closest(event, "#playground-votes");
    if (votes) setTimeout(() => votes.scrollIntoView({ block: "nearest" }), 200);
    const example = closest(event, "[data-example]")?.dataset.example;
    const box = document.querySelector("#playground-prompt textarea");
    if (!example || !(box instanceof HTMLTextAreaElement)) return;
    enter(box, example);
    box.focus();
    setTimeout(() => find(document, "#playground-prompt .submit-button").click(), 50);
  });

  /* Stores the name that a guest enters in the browser. */
  function rememberName() {
    const field = document.querySelector("#playground-name input, #playground-name textarea");
    if (!(field instanceof HTMLInputElement || field instanceof HTMLTextAreaElement)) return;
    if (field.dataset.known) return;
    field.dataset.known = "yes";
    try {
      const name = localStorage.getItem(NAME_KEY);
      if (name) enter(field, name);
      field.addEventListener("change", () => localStorage.setItem(NAME_KEY, field.value));
    } catch {
      /* storage is disabled */
    }
  }

  setInterval(() => {
    look();
    rememberName();
  }, LOOK_MS);
})();
