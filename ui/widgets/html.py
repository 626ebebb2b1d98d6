"""Small pieces of HTML that several pages show: the macros of `templates/widgets.html`."""

from ui.templates import fragments

WIDGETS = fragments("templates/widgets.html")
badge, time_tag, problem = WIDGETS.badge, WIDGETS.time_tag, WIDGETS.problem
skeleton, empty = WIDGETS.skeleton, WIDGETS.empty
