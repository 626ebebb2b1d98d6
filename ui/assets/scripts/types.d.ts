/* Types that the scripts share: libraries without types of their own, `window.slimscope`, and messages of the server. */

/* --- Plotly, as far as it is used ---------------------------------------------------------- */

interface PlotlyTrace {
  name?: string;
}

interface PlotlyLayout {
  [option: string]: unknown;
  template?: unknown;
  /** Set by `ui/widgets/panel.py`: file name, extra pixels of height. */
  meta?: { name?: string; more?: number };
}

interface PlotlyFigure {
  data: PlotlyTrace[];
  layout: PlotlyLayout;
}

interface PlotlyElement extends HTMLElement {
  data?: PlotlyTrace[];
  layout: PlotlyLayout;
}

interface PlotlyLibrary {
  react(
    element: HTMLElement,
    data: PlotlyTrace[],
    layout: PlotlyLayout,
    config: object,
  ): Promise<unknown>;
  relayout(element: HTMLElement, changes: object): Promise<unknown>;
  downloadImage(element: HTMLElement, options: object): Promise<unknown>;
}

/** The value of a `PlotlyView`: a figure, a sentence while data may come, or one where none will. */
type ChartValue = PlotlyFigure | string | null;

/* --- Gradio's HTML component --------------------------------------------------------------- */

interface GradioProps<Value> {
  value: Value;
}

type GradioWatch = (name: "value", listener: () => void) => void;

/* --- messages of the server ---------------------------------------------------------------- */

/** Answer to `slimscope/pulse`: the status line, and whether a page has to ask its server again. */
interface Pulse {
  pages: string;
  cursor: string;
  live: boolean;
  /** Numbers of running and waiting runs. */
  badge: string;
  html: string;
  runs: string[];
}

/** A shortcut as `ui/keyboard.py` defines it: keys, effect, and the address it opens. */
type Shortcut = [keys: string, effect: string, address: string];

interface SearchHit {
  title: string;
  about: string;
  /** An address, the hash of a term, or an action of the browser. */
  to: string | (() => void);
}

/** A part of a log (`ui/pages/run/job_log.py`), or the cursor that asks for the next one. */
interface LogPart {
  source: string;
  title: string;
  start: number;
  end: number;
  text?: string;
}

/* --- window.slimscope ---------------------------------------------------------------------- */

interface Slimscope {
  /* slimscope.js */
  find<T extends Element = HTMLElement>(root: ParentNode, selector: string, type?: new () => T): T;
  findAll<T extends Element = HTMLElement>(
    root: ParentNode,
    selector: string,
    type?: new () => T,
  ): T[];
  closest<T extends Element = HTMLElement>(
    event: Event,
    selector: string,
    type?: new () => T,
  ): T | null;
  create<Tag extends keyof HTMLElementTagNameMap>(
    tag: Tag,
    properties?: Partial<HTMLElementTagNameMap[Tag]>,
  ): HTMLElementTagNameMap[Tag];
  header(element: HTMLElement): void;
  pulse(element: HTMLElement, changed: () => void): void;
  /** Writes fields into the address; `moving`: the value still changes under the pointer. */
  address(fields: Record<string, unknown>, moving?: boolean): void;
  tab(name: string): void;
  plot(element: HTMLElement, props: GradioProps<ChartValue>, watch: GradioWatch): void;
  table(element: HTMLElement): void;
  saveTable(table: HTMLTableElement | null, name: string): void;
  modules(folder: string): void;
  still(): boolean;
  figures(name: string, draw: (figure: HTMLElement) => (() => void) | void): void;
  dialog(className: string, html: string): HTMLDialogElement;
  events<Row>(response: Response, take: (row: Row) => void): Promise<void>;
  /** Plotly templates of both modes, set by `ui/app.py`. */
  templates: { light?: unknown; dark?: unknown };
  /** Loads a module by its path, such as "weights/page"; set by `modules`. */
  module(path: "workbench/trace"): Promise<{ traced(form: EventTarget | null): void }>;
  module(path: string): Promise<{ ahead(): void }>;
  /** Something is being dragged, which a redraw would drop. */
  busy?: boolean;
  /** Asks the server at once for the status line; set by `pulse`. */
  look?(): void;

  /* controls.js, files.js, html_panel.js, keys.js, log_view.js, story.js */
  save(name: string, parts: BlobPart[], type?: string): void;
  saving(element: HTMLElement): void;
  download(props: GradioProps<{ name: string; data: string } | null>, watch: GradioWatch): void;
  fullScreen(card: Element | null | undefined): void;
  htmlPanel(
    element: HTMLElement,
    viewed: () => void,
    acted: (action: { do: string; run?: string; file?: string; text: string }) => void,
  ): void;
  keyboard(element: HTMLElement): void;
  logView(
    element: HTMLElement,
    props: GradioProps<LogPart | { source: string; end: number } | null>,
    watch: GradioWatch,
  ): void;
  story(
    element: HTMLElement,
    acted: (action: { do: string; run?: string; file?: string; text: string }) => void,
  ): void;
  leave(props: GradioProps<string | null>, watch: GradioWatch): void;
  /** `chart`: id of the chart to add to a story; without one, the whole page. */
  share(chart?: string): Promise<void>;
  present(): void;

  /* Set by the page that is open, where it has them. */
  /** The server has something new. */
  changed?(): void;
  /** The address has changed by Back or Forward; false where the page has to be loaded again. */
  back?(): boolean;
  /** Writes what the address leaves out by default. */
  pin?(): void;
}

interface Window {
  slimscope: Slimscope;
  slimscopeShade(
    figure: PlotlyFigure,
    templates: Slimscope["templates"],
    dark: boolean,
    css: CSSStyleDeclaration,
  ): PlotlyFigure;
  Plotly: PlotlyLibrary;
}
