"""The page *Playground*: a chat with one model or with several side by side, with streamed
answers."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.backup.examples import recorded_turn
from backend.errors import ConfigError, SlimscopeError
from backend.models.layer_names import read_names
from backend.queue import permissions, scheduling
from backend.queue.actor import ALIAS_LETTERS, Actor, with_alias
from backend.queue.conversations import newest_conversations
from backend.store.session import now_ms
from backend.store.states import ACTIVE
from jobs.chat import ELSEWHERE, ChatSettings, ask
from jobs.dlqat import kind as dlqat
from jobs.fields.types import DEFAULT_MODEL
from jobs.operations.submission import submit_run
from ui.frame import PRIVATE_EVENT, SILENT_EVENT, Page, current_user, live, on_load, query, url_sync
from ui.gradio_patches import event_data
from ui.pages.playground import board as boards
from ui.pages.playground.answers import HTML
from ui.pages.playground.board import absent, carry_out, shown_turns
from ui.runs.choices import answering, models
from ui.runs.html import error_of, progress, time_left
from ui.runs.queue_eta import start_times, start_words
from ui.runs.rows import newest_of
from ui.widgets.config_form import ConfigForm, address_values, component
from ui.widgets.html import LATEST, HtmlPanel, notice, plain, show_error, show_html
from ui.widgets.panel import Outputs, Updates

MADE_NAME = "4 bits by GPTQ"  # run of the button of an empty Playground
# groups of 32 instead of 64 lower the loss by a quarter in the same time; the rest is for speed
MADE = {"bits": 4, "group_size": 32, "segments": 12, "context": 256, "windows": 8}


def build() -> None:
    clock = gr.Timer(2.0, active=False)
    with gr.Row(elem_id="playground", equal_height=False):
        with gr.Column(scale=1, min_width=240, elem_id="playground-side"):
            earlier = HtmlPanel(elem_id="playground-earlier")
            form = _settings()
            alias = gr.Textbox(
                label="Your name",
                info="Shown with your prompts and votes. Optional.",
                max_length=ALIAS_LETTERS,
                visible=False,
                elem_id="playground-name",
                elem_classes="form-field",
            )
        with gr.Column(scale=5, min_width=320, elem_id="playground-main"):
            sides, blind = _top()
            board = HtmlPanel(elem_id="playground-board", min_height=240)
            with gr.Accordion(
                "Votes", open=False, visible=False, elem_id="playground-votes"
            ) as drawer:
                tally = plain()
            composer = Composer(form, sides, blind, *_composer(), gr.Textbox(visible=False))

    votes = Outputs(tally=tally, drawer=drawer, clock=clock)
    page = Outputs(board=board, earlier=earlier, **votes)
    show = page.named(draw), None, page.components
    live(*show)
    board.view(*show, **LATEST)
    earlier.view(*show, **LATEST).then(composer.show, None, composer.settings, **SILENT_EVENT)
    on_load(composer.arrive, None, composer.settings)
    clock.tick(votes.named(draw_votes), None, votes.components, **SILENT_EVENT)
    on_load(opened, None, alias)

    prompt, said = composer.prompt, [composer.message, composer.chat]
    asked = prompt.submit(
        composer.ask,
        [prompt, sides, blind, alias, *form.inputs],
        [prompt, *said, *form.accordions.values(), *form.messages],
        **PRIVATE_EVENT,
    )
    acted = board.act(act, alias, said, **PRIVATE_EVENT)
    for event in (asked, acted):
        url_sync(event, chat=composer.chat).then(*show, **SILENT_EVENT)


def _top() -> tuple[gr.Dropdown, gr.Checkbox]:
    fields = ChatSettings.model_fields
    with gr.Row(elem_id="playground-top", equal_height=True):
        chosen = component("sides", fields["sides"], answering(), "playground-")
        blind = gr.Checkbox(
            label="Blind: model names after you vote",
            elem_id="playground-field-blind",
            elem_classes="form-field",
        )
        plain(HTML.new_chat(), elem_id="playground-anew")
    assert isinstance(chosen, gr.Dropdown)
    return chosen, blind


def _settings() -> ConfigForm:
    with gr.Accordion("Settings", open=False, elem_id="playground-settings"):
        form = ConfigForm(ChatSettings, {}, "playground-", without=ELSEWHERE)
        gr.Checkbox(  # read by the style sheet alone
            label="Show rejected draft tokens",
            elem_id="playground-vain",
            info="The first draft token of each step that the base model rejected.",
            elem_classes="form-field",
        )
    return form


def _composer() -> tuple[gr.Textbox, gr.HTML]:
    with gr.Column(elem_id="playground-composer"):
        message = notice("playground-said")
        prompt = gr.Textbox(
            label="Prompt",
            show_label=False,
            lines=1,
            max_lines=8,
            submit_btn="Send",
            placeholder="Write a prompt. Enter sends it, Shift+Enter begins a new line.",
            elem_id="playground-prompt",
        )
    return prompt, message


@dataclass(frozen=True)
class Composer:
    """Inputs for a prompt; `chat` contains the number of the prompt shown last."""

    form: ConfigForm
    sides: gr.Dropdown
    blind: gr.Checkbox
    prompt: gr.Textbox
    message: gr.HTML
    chat: gr.Textbox

    @property
    def settings(self) -> list[Any]:
        """Inputs that a conversation sets."""
        return [self.message, self.sides, self.blind, *self.form.inputs]

    def arrive(self, request: gr.Request) -> dict[Any, Any]:
        """Updates on arrival: available models, settings of the conversation or the URL, and the
        reason why prompts are not allowed."""
        config, there = _shown_config(request) or address_values(request, ChatSettings), answering()
        updates = self.form.initial_updates(config) | {self.sides: gr.update(choices=there)}
        if config:
            blind = {"blind": True} if query(request, "blind") else {}
            updates |= self._chosen(config | blind, choices=there)
        if reason := permissions.may_not_ask(current_user(request)):
            updates[self.message] = show_html(HTML.may_not(reason))
        return updates

    def show(self, request: gr.Request) -> Any:
        """Updates to the settings of the shown conversation."""
        config = _shown_config(request)
        return self.form.show(config) | self._chosen(config) if config else gr.skip()

    def _chosen(self, config: dict[str, Any], **offered: Any) -> dict[Any, Any]:
        names = read_names(str(config.get("sides", "")))
        missing = absent(names)
        there = [name for name in names if name not in missing] or [DEFAULT_MODEL]
        return {
            self.sides: gr.update(**offered | ({"value": there} if names else {})),
            self.blind: gr.update(value=bool(config.get("blind", False))),
            self.message: show_html(HTML.absent(missing, there) if missing else Markup()),
        }

    def ask(
        self, request: gr.Request, text: str, names: list[str], hide: bool, alias: str, *values: Any
    ) -> dict[Any, Any]:
        here, actor = query(request, "chat"), _actor(request, alias)
        try:
            sides = ", ".join(map(str, names or []))
            if not sides:
                raise ConfigError("No model is selected.", "", "Select 1 to 4 models.", "sides")
            config = self.form.values(values) | {"prompt": str(text or "").strip(), "sides": sides}
            before = shown_turns(here)
            number = ask(config, bool(hide), actor, before[-1].number if before else None)
        except SlimscopeError as error:
            kept = {self.prompt: gr.skip(), self.chat: here, self.message: show_error(error)}
            return self.form.show_errors(error) | kept
        sent = {self.prompt: "", self.chat: str(number), self.message: show_html()}
        return self.form.show_errors(None) | sent


def _shown_config(request: gr.Request) -> dict[str, Any]:
    """The settings of the shown conversation; empty without one."""
    if turns := shown_turns(query(request, "chat")):
        last = turns[-1]
        about = {"sides": ", ".join(last.names), "blind": last.conversation.blind}
        return last.prompt.settings | about
    return {}


def opened(request: gr.Request) -> Any:
    """A field for the name of a guest, if guests need names."""
    actor = current_user(request)
    return gr.update(visible=actor.role != "host" and not permissions.may_not_ask(actor))


def draw_votes(request: gr.Request) -> Updates:
    turns = shown_turns(query(request, "chat"))
    tally = boards.votes_drawer(turns, current_user(request).name)
    is_open = bool(tally)
    return {"tally": tally, "drawer": gr.update(visible=is_open), "clock": gr.Timer(active=is_open)}


def _actor(request: gr.Request, alias: str) -> Actor:
    return with_alias(current_user(request), str(alias or ""))


def draw(request: gr.Request) -> Updates:
    actor, turns = current_user(request), shown_turns(query(request, "chat"))
    if turns:
        board = boards.conversation(turns, actor)
    else:
        board = HTML.nothing(
            boards.EXAMPLES, model_to_ask(actor, query(request, "sides")), recorded_turn()
        )
    here = turns[-1].conversation.id if turns else 0
    past = newest_conversations(30)
    earlier = boards.history(past, here, actor.name, now_ms())
    return {"board": board, "earlier": earlier, **draw_votes(request)}


def model_to_ask(actor: Actor, chosen: str) -> Markup:
    """The button that makes a compressed model, the progress of that run, or a link to its model.
    Empty if other compressed models can answer, or if that model is among the `chosen` ones."""
    job = newest_of(actor, MADE_NAME)
    if job and job.state in ACTIVE:
        left = time_left(job) or start_words(start_times(scheduling.status()).get(job.id))
        return HTML.making(job, progress(job) or Markup(), left)
    there = answering()
    if job and any(job.run == run for _, run in there):
        is_chosen = job.run in read_names(chosen)
        return Markup() if is_chosen else HTML.made(job.run, f"{DEFAULT_MODEL},{job.run}")
    if len(there) > len(models()):
        return Markup()
    return HTML.make(DEFAULT_MODEL, permissions.may_not_add(actor), error_of(job) if job else "")


def act(alias: str, request: gr.Request, event: gr.EventData) -> tuple[Any, str]:
    data, here = event_data(event), query(request, "chat")
    try:
        actor = _actor(request, alias)
        if data.get("do") == "make":
            submit_run(dlqat.KIND.name, MADE, actor, "GPTQ", MADE_NAME)
            return show_html(), here
        added = carry_out(str(data.get("do", "")), str(data.get("run", "")), actor)
        return show_html(), added or here
    except SlimscopeError as error:
        return show_error(error), here


PAGE = Page(
    "Playground",
    "playground",
    build,
    order=80,
    section="Playground",
    key="p",
)
