"""Prompt templates: sandboxed Jinja2 with a bounded amount of work per rendering.

Templates may contain the node types of an allow-list: no attribute access (except `loop`), no
assignment, no macro, no inclusion. Loops iterate over the given lists or a short range; an
expression uses a filter at most once, with constant options.

Rendering runs on the event loop, so it has a work limit. Before a template is compiled, each
expression in it is wrapped to count the size of its value, and each loop to count its iterations
(`_WorkCounter`). The count depends on the template and its variables alone, not on the time taken,
so the same template is always accepted or always rejected.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

from enrich_service.core.errors import InvalidInput

# Variable → default, description. Quote labels, which are data: write {{ label | tojson }}.
VARIABLES: Mapping[str, tuple[Any, str]] = {
    "label": ("", "name of the class"),
    "context": (None, "what kind of thing it is, e.g. 'a bird species'; may be none"),
    "labels": ((), "names of the labels that are most easily confused with it"),
    "texts": ((), "texts of the label to work on, such as to translate"),
    "n": (1, "number of sentences or captions to write"),
    "language": ("English", "language of the answer"),
    "problems": ((), "what was wrong with the previous answer; empty in the first request"),
}
# Filter → units of work per item and per character of its input.
_FILTER_WORK: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("default", "first", "last", "length"), (0, 1)),
    **dict.fromkeys(("capitalize", "lower", "trim", "upper"), (0, 1)),
    **dict.fromkeys(("join", "tojson"), (10, 1)),
    "title": (0, 25),
    **dict.fromkeys(("sort", "unique"), (150, 1)),
}
FILTERS = frozenset(_FILTER_WORK)
MAX_RANGE = 100
MAX_NESTED_LOOPS = 2
MAX_TEMPLATE = 20_000  # characters
MAX_RENDERED = 200_000  # characters
# Of the syntax tree. Compiling takes 0.3 ms a node, and quadratic time in the depth.
MAX_NODES = 1000
MAX_DEPTH = 25
# Units of work in one rendering. A unit takes about 20 ns in the slowest operations (sorting,
# loops), less in others. Real prompts take a few thousand units.
MAX_WORK = 400_000
_ITEM_WORK = 15
_NODE_WORK = 30

# Values for the trial rendering of a template before it is stored: as large as in usual runs.
_SAMPLE: Final[Mapping[str, Any]] = {
    "label": "harlequin duck",
    "context": "a bird species",
    "labels": tuple(f"confusable label {number}" for number in range(20)),
    "texts": tuple(f"text {number}: {'a bird with a blue back, ' * 10}" for number in range(20)),
    "n": 5,
    "language": "English",
    "problems": tuple(f"problem {number}: the answer names the label" for number in range(5)),
}
_COUNTER: Final = "_work"  # variable with the work counter; templates cannot access it

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
    """A prompt version, or another object with its two templates."""

    system: str
    user: str


@dataclass(frozen=True)
class Rendered:
    """The two messages for the language model; `system` may be empty."""

    system: str
    user: str


class _WorkCounter:
    """Counts the work of rendering the template `name`, and ends it beyond MAX_WORK."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.remaining = MAX_WORK

    def add(self, units: int) -> None:
        """Count `units` of work. Raises InvalidInput beyond MAX_WORK."""
        self.remaining -= units
        if self.remaining < 0:
            raise InvalidInput(
                f"The {self.name} template takes too much work to render: use fewer or shorter "
                "loops, lists and filters"
            )


def _size(value: object) -> int:
    """The units of work of iterating over a value once."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(_ITEM_WORK + _size(item) for item in value)
    return _ITEM_WORK * len(value) if isinstance(value, range) else 1


@pass_context
def _counted(
    context: Context,
    value: Any,  # noqa: ANN401 - any value
    per_item: int = 0,
    per_character: int = 1,
) -> Any:  # noqa: ANN401
    """Count the size of `value` as work, and return it; an iterator becomes a list."""
    if isinstance(value, Iterator):
        value = list(value)
    items = len(value) if isinstance(value, str | list | tuple | range) else 1
    units = _NODE_WORK + per_item * items + per_character * _size(value)
    context.parent[_COUNTER].add(units)
    return value


@pass_context
def _iterated(context: Context, values: Iterable[Any], weight: int) -> Iterator[Any]:
    """Yield the items of `values`, counting `weight` units of work for each."""
    counter = context.parent[_COUNTER]
    for value in values:
        counter.add(weight)
        yield value


class _CountWork(NodeTransformer):
    """Wraps the expressions and loops of a template in `_counted` and `_iterated`."""

    def _wrap(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return _call("_counted", node)

    visit_Add = visit_Concat = visit_List = _wrap

    def visit_Name(self, node: nodes.Name) -> nodes.Expr:
        return _call("_counted", node) if node.ctx == "load" else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._wrap(node) if node.ctx == "load" else node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Expr:
        return node  # loop.index and the like

    def visit_Call(self, node: nodes.Call) -> nodes.Expr:
        return node  # range(N)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Expr:
        assert node.node is not None
        options = [*node.args, *(pair.value for pair in node.kwargs)]
        factor = 1 + sum(len(str(o.value)) for o in options if isinstance(o, nodes.Const))
        self.generic_visit(node)
        weights = (factor * weight for weight in _FILTER_WORK[node.name])
        node.node = _call("_counted", node.node, *weights)
        return _call("_counted", node)

    def visit_For(self, node: nodes.For) -> nodes.For:
        repeated = [*node.body, *filter(None, [node.test])]
        weight = _NODE_WORK + sum(_weight(part) for part in repeated)
        self.generic_visit(node)
        node.iter = _call("_iterated", node.iter, weight)
        return node


def _weight(node: nodes.Node) -> int:
    """Units of work to evaluate a node once, without its loops and the sizes of its variables."""
    own = _NODE_WORK
    if isinstance(node, nodes.TemplateData):
        own += len(node.data)
    elif isinstance(node, nodes.Const):
        own += len(str(node.value))
    elif isinstance(node, nodes.Getattr):  # of `loop`, which looks ahead
        own += 3 * _NODE_WORK
    return own + sum(_weight(child) for child in node.iter_child_nodes())


def _call(name: str, value: nodes.Node, *options: int) -> nodes.Filter:
    """A node that calls the filter `name`."""
    constants: list[nodes.Expr] = [nodes.Const(option) for option in options]
    return nodes.Filter(value, name, constants, [], None, None, lineno=value.lineno)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        optimized=False,  # takes quadratic time in the depth, and gains little
        autoescape=False,  # the reader is a language model, not a browser
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals = {"range": range}
    environment.filters = {name: environment.filters[name] for name in FILTERS}
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters |= {"_counted": _counted, "_iterated": _iterated}
    return environment


ENVIRONMENT = _environment()


def check_template(name: str, source: str) -> None:
    """Raise InvalidInput unless `source` is an allowed template of known variables.

    The template is rendered once with sample values, so that one that exceeds the work limit is
    rejected before it is stored. `name`: what the messages call it, "system" or "user".
    """
    if len(source) > MAX_TEMPLATE:
        raise InvalidInput(
            f"The {name} template has {len(source)} characters; at most {MAX_TEMPLATE} are allowed"
        )
    try:
        tree = ENVIRONMENT.parse(source)
        _check_size(name, tree)
        _check_node(name, tree, loops=0, filters=frozenset())
        unknown = meta.find_undeclared_variables(tree) - VARIABLES.keys()
    except TemplateSyntaxError as error:
        raise InvalidInput(f"The {name} template, line {error.lineno}: {error.message}") from error
    except (TemplateError, RecursionError, ValueError) as error:
        raise InvalidInput(f"The {name} template cannot be parsed: {error}") from error
    if unknown:
        raise InvalidInput(
            f"The {name} template uses the unknown variable {min(unknown)!r}; "
            f"the variables are {', '.join(VARIABLES)}"
        )
    with suppress(TemplateError, TypeError, ValueError):  # may work with other values
        _generate(name, source, _SAMPLE)


def _check_size(name: str, tree: nodes.Template) -> None:
    level: list[nodes.Node] = [tree]
    count = depth = 0
    while level:
        count += len(level)
        depth += 1
        if count > MAX_NODES:
            raise InvalidInput(
                f"The {name} template has more than {MAX_NODES} parts: use fewer expressions, list "
                "items and blocks"
            )
        if depth > MAX_DEPTH:
            raise InvalidInput(
                f"The {name} template, line {level[0].lineno}: nested more than {MAX_DEPTH} deep "
                "(a + b + c counts too: write a ~ b ~ c)"
            )
        level = [child for node in level for child in node.iter_child_nodes()]


def _check_node(name: str, node: nodes.Node, *, loops: int, filters: frozenset[str]) -> None:
    """Raise InvalidInput where `node` or a part of it is not allowed.

    `loops`: number of enclosing loops; `filters`: the filters already applied to its value.
    """
    if reason := _fault(node, loops, filters):
        raise InvalidInput(f"The {name} template, line {node.lineno}: {reason}")
    if isinstance(node, nodes.Getattr):
        return
    if isinstance(node, nodes.Filter):
        if node.node is not None:
            _check_node(name, node.node, loops=loops, filters=filters | {node.name})
        return
    for child in node.iter_child_nodes():
        _check_node(name, child, loops=loops + isinstance(node, nodes.For), filters=filters)


def _fault(node: nodes.Node, loops: int, filters: frozenset[str]) -> str | None:
    """The reason why a node itself, without its children, is not allowed; None if it is."""
    if not isinstance(node, _ALLOWED):
        return f"{type(node).__name__} is not allowed in a prompt"
    if isinstance(node, nodes.Name) and node.name in ("loop", "self"):
        return f"there is no variable {node.name!r}"
    if isinstance(node, nodes.Getattr):
        name = node.node.name if isinstance(node.node, nodes.Name) else ""
        if name != "loop" or node.attr not in _LOOP_FIELDS:
            return f"attribute access (.{node.attr}) is not allowed in a prompt"
    if isinstance(node, nodes.Call) and not _is_short_range(node):
        return f"only range(N) up to {MAX_RANGE} can be called in a prompt"
    if isinstance(node, nodes.Filter):
        return _filter_fault(node, filters)
    return _loop_fault(node, loops) if isinstance(node, nodes.For) else None


def _filter_fault(node: nodes.Filter, filters: frozenset[str]) -> str | None:
    if node.name not in FILTERS:
        return f"there is no filter {node.name!r}; the filters are {', '.join(sorted(FILTERS))}"
    if node.name in filters:
        return f"the filter {node.name!r} is used twice in one expression"
    options = [*node.args, *(pair.value for pair in node.kwargs)]
    constant = all(isinstance(option, nodes.Const) for option in options)
    if node.dyn_args or node.dyn_kwargs or not constant:
        return f"the options of the filter {node.name!r} must be constants"
    return None


def _loop_fault(node: nodes.For, loops: int) -> str | None:
    if loops >= MAX_NESTED_LOOPS:
        return f"loops may be nested at most {MAX_NESTED_LOOPS} deep"
    if node.recursive:
        return "a recursive loop is not allowed in a prompt"
    iterated = node.iter
    while isinstance(iterated, nodes.Filter) and iterated.node is not None:
        iterated = iterated.node
    if not isinstance(iterated, nodes.Name | nodes.List | nodes.Tuple | nodes.Call):
        return "a loop must iterate over a variable, a list or range(N)"
    return None


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
    """The messages of a prompt version for `variables`; missing ones get the default of VARIABLES.

    Raises InvalidInput for an unknown variable, a template that fails, or a message that takes too
    much work or grows too long.
    """
    if unknown := variables.keys() - VARIABLES.keys():
        raise InvalidInput(f"There is no template variable {min(unknown)!r}")
    values = {name: default for name, (default, _) in VARIABLES.items()} | dict(variables)
    return Rendered(
        system=_rendered("system", templates.system, values),
        user=_rendered("user", templates.user, values),
    )


@lru_cache(maxsize=256)
def _compiled(source: str) -> Template:
    """The compiled template, cached: a run renders the same two for each label."""
    return ENVIRONMENT.from_string(_CountWork().visit(ENVIRONMENT.parse(source)))


def _rendered(name: str, source: str, variables: Mapping[str, Any]) -> str:
    try:
        return _generate(name, source, variables)
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidInput(f"The {name} template cannot be rendered: {error}") from error


def _generate(name: str, source: str, variables: Mapping[str, Any]) -> str:
    """The message. Raises InvalidInput if it takes too much work or is too long; Jinja's errors."""
    parts: list[str] = []
    size = 0
    for part in _compiled(source).generate({**variables, _COUNTER: _WorkCounter(name)}):
        size += len(part)
        if size > MAX_RENDERED:
            raise InvalidInput(f"The {name} message grows beyond {MAX_RENDERED} characters")
        parts.append(part)
    return "".join(parts).strip()
