"""The forms of a page, and what a browser would send for each: its successful controls."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

Values = list[tuple[str, str]]


@dataclass
class Control:
    """A field, or a group of radio buttons; `choices`: the values that a select or radio offers."""

    name: str
    kind: str
    value: str | None  # None: a browser sends nothing for it
    choices: list[str] = field(default_factory=list)
    required: bool = False
    least: str | None = None  # of a number


@dataclass
class Form:
    """A form of a page. `buttons`: name, value and address of each that submits it."""

    method: str
    action: str
    encoding: str
    id: str | None
    controls: list[Control] = field(default_factory=list)
    buttons: list[tuple[str | None, str, str]] = field(default_factory=list)


class _Parser(HTMLParser):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.forms = path, []
        self.inside: Form | None = None
        self.text: Control | None = None  # the textarea or option whose text comes next
        self.select: Control | None = None
        self.orphans: list[tuple[str, object]] = []  # controls outside, that name their form

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "form":
            self.inside = Form(
                given.get("method", "get"),
                given.get("action", self.path),
                given.get("enctype", ""),
                given.get("id"),
            )
            self.forms.append(self.inside)
        elif tag == "button" and given.get("type", "submit") == "submit":
            action = given.get("formaction", "")
            self._add("buttons", (given.get("name"), given.get("value", ""), action), given)
        elif tag == "select":
            self.select = Control(given["name"], "select", None, required="required" in given)
            self._add("controls", self.select, given)
        elif tag == "option" and self.select is not None:
            self.text = Control("", "option", given.get("value", ""))
            self.text.required = "value" not in given  # its text is its value
            self.text.choices = ["selected"] if "selected" in given else []
        elif tag == "textarea":
            self.text = Control(given["name"], "textarea", "", required="required" in given)
            self._add("controls", self.text, given)
        elif tag == "input" and "name" in given:
            self._add_input(given)

    def _add_input(self, given):
        kind, value = given.get("type", "text"), given.get("value", "")
        if kind in ("checkbox", "radio"):
            value = given.get("value", "on")
            sent = value if "checked" in given else None
            group = (
                next(
                    (
                        c
                        for c in self.inside.controls
                        if c.kind == kind == "radio" and c.name == given["name"]
                    ),
                    None,
                )
                if self.inside
                else None
            )
            if group is None:
                group = Control(given["name"], kind, sent, [], "required" in given)
                self._add("controls", group, given)
            group.choices.append(value)
            group.value = sent or group.value
            return
        control = Control(given["name"], kind, value, [], "required" in given, given.get("min"))
        self._add("controls", control, given)

    def _add(self, where, what, given):
        if "form" in given:
            self.orphans.append((given["form"], where, what))
        elif self.inside is not None:
            getattr(self.inside, where).append(what)

    def handle_data(self, data):
        if self.text is not None and (self.text.kind == "textarea" or self.text.required):
            self.text.value += data

    def handle_endtag(self, tag):
        if tag == "form":
            self.inside = None
        elif tag == "option" and self.select is not None:  # else it is of a datalist
            self.select.choices.append(self.text.value)
            if self.text.choices:
                self.select.value = self.text.value
            self.text = None
        elif tag == "select":
            if self.select.value is None and self.select.choices:
                self.select.value = self.select.choices[0]
            self.select = None
        elif tag == "textarea":
            self.text.value = self.text.value.removeprefix("\n")
            self.text = None


def forms_of(path: str, html: str) -> list[Form]:
    """The forms of the page at `path`."""
    parser = _Parser(path)
    parser.feed(html)
    for form_id, where, what in parser.orphans:
        form = next(form for form in parser.forms if form.id == form_id)
        getattr(form, where).append(what)
    return parser.forms


def submissions(form: Form) -> Iterator[tuple[str, str, Values]]:
    """What, address and values: the defaults by each button, then each other choice there is."""
    defaults = [(c.name, c.value) for c in form.controls if c.value is not None]
    for name, value, action in form.buttons or [(None, "", "")]:
        pressed = [(name, value)] if name else []
        yield f"button {value or action or form.action}", action or form.action, defaults + pressed
    for place, control in enumerate(form.controls):
        offered: list[str | None] = list(control.choices)
        alone = sum(c.name == control.name for c in form.controls) == 1
        if control.kind == "checkbox" and not control.required and alone:
            offered.append(None)
        for choice in offered:
            if choice != control.value:
                values = [
                    (c.name, choice if here == place else c.value)
                    for here, c in enumerate(form.controls)
                ]
                sent = [(name, value) for name, value in values if value is not None]
                yield f"{control.name}={choice}", form.action, sent
