"""Prompt templates: Jinja2 without anything that could run away or reach out.

What a template may contain is an allow-list of node types. It has no attribute access (but for
`loop`), no assignment, no macro, no inclusion; loops run over the given lists or a short range; a
filter is used once in an expression, with constant options, so that no text can grow without end.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from enrich_service.core.errors import InvalidInput

# What every template can use. Labels travel as data: write {{ label | tojson }}.
VARIABLES: Mapping[str, tuple[Any, str]] = {
    "label": ("", "name of the class"),
    "context": (None, "what kind of thing it is, e.g. 'a bird species'; may be none"),
    "labels": ((), "names of the labels that are most easily confused with it"),
    "texts": ((), "texts of the label to work on, such as to translate"),
    "n": (1, "how many sentences or captions are asked for"),
    "language": ("English", "language of the answer"),
    "problems": ((), "what was wrong with the answer before; empty at first"),
}
FILTERS = frozenset(
    {"capitalize", "default", "first", "join", "last", "length", "lower", "sort", "title"}
    | {"tojson", "trim", "unique", "upper"}
)
MAX_RANGE = 100
MAX_NESTED_LOOPS = 2
MAX_TEMPLATE = 20_000  # characters
MAX_RENDERED = 200_000  # characters

_ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.If,
    nodes.For,
    nodes.CondExpr,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Compare,
    nodes.Operand,
    nodes.Filter,
    nodes.Test,
    nodes.Concat,
    nodes.List,
    nodes.Tuple,
    nodes.Add,
    nodes.Sub,
    nodes.Call,
    nodes.Getattr,
)
_LOOP_FIELDS = frozenset({"index", "index0", "first", "last", "length"})


class Templates(Protocol):
    """A prompt version, or anything else that has its two templates."""

    system: str
    user: str


@dataclass(frozen=True)
class Rendered:
    """The two messages for the language model; `system` may be empty."""

    system: str
    user: str


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,  # the reader is a language model, not a browser
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals = {"range": range}
    environment.filters = {name: environment.filters[name] for name in FILTERS}
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


ENVIRONMENT = _environment()


def check_template(what: str, source: str) -> None:
    """Raise InvalidInput unless `source` is a harmless template of known variables."""
    if len(source) > MAX_TEMPLATE:
        raise InvalidInput(
            f"The {what} template has {len(source)} characters; at most {MAX_TEMPLATE} are allowed"
        )
    try:
        tree = ENVIRONMENT.parse(source)
        _check_node(what, tree, loops=0, filters=frozenset())
        unknown = meta.find_undeclared_variables(tree) - VARIABLES.keys()
    except TemplateSyntaxError as error:
        raise InvalidInput(f"The {what} template, line {error.lineno}: {error.message}") from error
    except (TemplateError, RecursionError) as error:
        raise InvalidInput(f"The {what} template cannot be read: {error}") from error
    if unknown:
        raise InvalidInput(
            f"The {what} template uses the unknown variable {min(unknown)!r}; "
            f"there are {', '.join(VARIABLES)}"
        )


def _check_node(what: str, node: nodes.Node, *, loops: int, filters: frozenset[str]) -> None:
    def refuse(reason: str) -> InvalidInput:
        return InvalidInput(f"The {what} template, line {node.lineno}: {reason}")

    if not isinstance(node, _ALLOWED):
        raise refuse(f"{type(node).__name__} is not allowed in a prompt")
    if isinstance(node, nodes.Name) and node.name == "self":
        raise refuse("there is no variable 'self'")
    if isinstance(node, nodes.Getattr):
        name = node.node.name if isinstance(node.node, nodes.Name) else ""
        if name != "loop" or node.attr not in _LOOP_FIELDS:
            raise refuse(f"attribute access (.{node.attr}) is not allowed in a prompt")
    elif isinstance(node, nodes.Call):
        if not _is_short_range(node):
            raise refuse(f"only range(N) up to {MAX_RANGE} can be called in a prompt")
    elif isinstance(node, nodes.Filter):
        if node.name not in FILTERS:
            raise refuse(
                f"there is no filter {node.name!r}; there are {', '.join(sorted(FILTERS))}"
            )
        if node.name in filters:
            raise refuse(f"the filter {node.name!r} is used twice in one expression")
        options = [*node.args, *(pair.value for pair in node.kwargs)]
        if (
            node.dyn_args
            or node.dyn_kwargs
            or not all(isinstance(option, nodes.Const) for option in options)
        ):
            raise refuse(f"the options of the filter {node.name!r} must be constants")
        if node.node is not None:
            _check_node(what, node.node, loops=loops, filters=filters | {node.name})
        return
    elif isinstance(node, nodes.For):
        loops += 1
        if loops > MAX_NESTED_LOOPS:
            raise refuse(f"loops may be nested {MAX_NESTED_LOOPS} deep")
        if node.recursive:
            raise refuse("a recursive loop is not allowed in a prompt")
        iterated = node.iter
        while isinstance(iterated, nodes.Filter) and iterated.node is not None:
            iterated = iterated.node
        if not isinstance(iterated, nodes.Name | nodes.List | nodes.Tuple | nodes.Call):
            raise refuse("a loop runs over a variable, a list or range(N)")
    for child in node.iter_child_nodes():
        _check_node(what, child, loops=loops, filters=filters)


def _is_short_range(call: nodes.Call) -> bool:
    arguments = [argument.value for argument in call.args if isinstance(argument, nodes.Const)]
    return (
        isinstance(call.node, nodes.Name)
        and call.node.name == "range"
        and not (call.kwargs or call.dyn_args or call.dyn_kwargs)
        and len(arguments) == len(call.args) in (1, 2)
        and all(isinstance(n, int) and 0 <= n <= MAX_RANGE for n in arguments)
    )


def variables_of(templates: Templates) -> frozenset[str]:
    """The variables that a version's templates use."""
    return frozenset(
        name
        for source in (templates.system, templates.user)
        for name in meta.find_undeclared_variables(ENVIRONMENT.parse(source))
    )


def render(templates: Templates, variables: Mapping[str, Any]) -> Rendered:
    """The messages of a prompt version for `variables` (see VARIABLES; the rest is filled in).

    Raises InvalidInput for a variable that no template can know, or a text that grows too long.
    """
    if unknown := variables.keys() - VARIABLES.keys():
        raise InvalidInput(f"There is no template variable {min(unknown)!r}")
    filled = {name: default for name, (default, _) in VARIABLES.items()} | dict(variables)
    return Rendered(
        system=_rendered("system", templates.system, filled),
        user=_rendered("user", templates.user, filled),
    )


@lru_cache(maxsize=256)
def _compiled(source: str) -> Template:
    """A run renders the same two templates for each of its labels."""
    return ENVIRONMENT.from_string(source)


def _rendered(what: str, source: str, variables: Mapping[str, Any]) -> str:
    parts: list[str] = []
    size = 0
    try:
        for part in _compiled(source).generate(variables):
            size += len(part)
            if size > MAX_RENDERED:
                raise InvalidInput(f"The {what} message grows beyond {MAX_RENDERED} characters")
            parts.append(part)
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidInput(f"The {what} template cannot be filled in: {error}") from error
    return "".join(parts).strip()
