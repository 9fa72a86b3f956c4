from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from enrich_service.core.errors import InvalidInput
from enrich_service.prompts.templates import FILTERS, VARIABLES, check_template, render


@dataclass
class Texts:
    system: str
    user: str


def test_a_template_is_filled_with_labels_as_data():
    texts = Texts(
        "Answer in {{ language }}.",
        "{{ label | tojson }}{% if context %} ({{ context }}){% endif %}"
        "{% for other in labels %}{{ '; not ' if loop.first else ', ' }}{{ other }}{% endfor %}",
    )
    for text in (texts.system, texts.user):
        check_template("x", text)
    filled = render(texts, {"label": 'a "b" <c>\n', "labels": ["d", "e"]})
    assert filled.system == "Answer in English."
    assert filled.user == '"a \\"b\\" <c>\\n"; not d, e'


REFUSED = [
    "{{ label.__class__ }}",
    "{{ label.upper() }}",
    "{{ label['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ label|replace('a', 'bbbb') }}",
    "{{ label|center(100000000) }}",
    "{{ label * 1000000 }}",
    "{{ 10 ** 100 }}",
    "{% for a in range(1000000) %}x{% endfor %}",
    "{% for a in range(n) %}x{% endfor %}",
    "{% for a in range(0, 100, 0) %}x{% endfor %}",
    "{% for a in labels %}" * 3 + "x" + "{% endfor %}" * 3,
    "{% for a in labels recursive %}{{ loop(labels) }}{% endfor %}",
    "{% for a in labels ~ label %}x{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set x = label %}{% set x = x ~ x %}{{ x }}",
    "{% with x = label ~ label %}{{ x }}{% endwith %}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{% filter upper %}x{% endfilter %}",
    "{{ label|tojson|tojson }}",
    "{{ labels|join(label) }}",
    "{{ labels|join('x')|join('y') }}",
    "{{ labels|map('upper') }}",
    "{{ cycler }}",
    "{{ self }}",
    "{{ namespace() }}",
    "{{ range(3).start }}",
    "{{ loop.index }}",
    "{{ undefined_thing }}",
    "x" * 20_001,
    "{{ (" * 5000,
    "{{ " + "9" * 19_000 + " }}",
    "{% for a in labels %}{{ loop }}{% endfor %}",
    "{{ " + "+".join(["n"] * 190) + " }}",
    "{% if n %}" * 101 + "x" + "{% endif %}" * 101,
    "{{ [" + ",".join(["n"] * 5000) + "]|first }}",
]


@pytest.mark.parametrize("source", REFUSED)
def test_what_could_reach_out_or_run_away_is_refused(source):
    with pytest.raises(InvalidInput):
        check_template("user", source)


LOOPS = "{% for a in range(100) %}{% for b in range(100) %}"
ENDS = "{% endfor %}{% endfor %}"
TOO_MUCH_WORK = [
    LOOPS + "{{ '" + "zyxw" * 4000 + "'|sort|first }}" + ENDS,
    LOOPS + "{% if '" + "zy" * 8000 + "'|unique|first == 'a' %}x{% endif %}" + ENDS,
    LOOPS + "{% if '" + "a " * 7000 + "'|title == 'b' %}x{% endif %}" + ENDS,
    LOOPS + "{% if '" + "ab" * 3000 + "' in '" + "ab" * 4000 + "' %}x{% endif %}" + ENDS,
    LOOPS + "{% if texts|unique|join('-') == 'x' %}x{% endif %}" + ENDS,
    LOOPS + "{% if [texts, texts]|tojson == 'x' %}x{% endif %}" + ENDS,
    LOOPS + "{% if (" + " ~ ".join(["label"] * 900) + ") == 'x' %}x{% endif %}" + ENDS,
    LOOPS + "{% if loop.last and loop.index == 1000 %}{% endif %}" + ENDS,
    "{% for a in range(100) if '" + "zy" * 3000 + "'|sort|first == 'b' %}x{% endfor %}",
    "{{ '" + "a" * 9000 + "'|join('" + "b" * 9000 + "')|length }}",
]


@pytest.mark.parametrize("source", TOO_MUCH_WORK, ids=range(len(TOO_MUCH_WORK)))
def test_a_template_that_takes_too_much_work_is_refused_before_it_is_stored(source):
    with pytest.raises(InvalidInput, match="user template takes too much work to render"):
        check_template("user", source)


def test_work_that_grows_with_the_values_is_stopped():
    texts = Texts("", "{% for text in texts %}{{ text|title }}{% endfor %}")
    check_template("user", texts.user)
    assert render(texts, {"texts": ["a duck. ", "a scoter."]}).user == "A Duck. A Scoter."
    with pytest.raises(InvalidInput, match="takes too much work"):
        render(texts, {"texts": ["a duck. " * 300] * 10})


def test_counting_the_work_changes_no_text():
    values = {"label": "B c", "labels": ("b", "B", "a"), "texts": ("x y.", 'z "q"'), "n": 3}
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for source in (
        "{% for a in labels|unique|sort %}{{ loop.index }}/{{ loop.length }}{{ a }} {% endfor %}",
        "{% for a in labels if a != 'b' %}{{ a }}{{ loop.last }}{% else %}none{% endfor %}",
        "{% for a in problems %}{{ a }}{% else %}none{% endfor %}{{ (n, n + 1, [label ~ n]) }}",
        "{% for i in range(2) %}{% for t in texts %}{{ i }}{{ t|upper }}{% endfor %}{% endfor %}",
        "{{ labels|join('; ') }} {{ texts|last|title|trim('.') }} {{ labels|sort(reverse=true) }}",
        "{{ context|default('none', true) }}{{ texts|length if n is odd and label in 'B cd' }}",
        "{% if 'a' in labels and not problems %}{{ label|lower|first }}{% endif %}",
    ):
        check_template("user", source)
        expected = plain.from_string(source).render(values | {"problems": (), "context": None})
        assert render(Texts("", source), values).user == expected.strip()


def test_loops_over_the_given_lists_or_a_short_range_are_fine():
    for source in (
        "{% for p in problems %}{{ loop.index }}. {{ p }}{% endfor %}",
        "{% for p in labels|sort %}{{ p }}{% if not loop.last %}, {% endif %}{% endfor %}",
        "{% for i in range(5) %}{{ i }}{% endfor %}",
        "{{ labels | join(', ') }}{{ (n + 1) }}{{ context | default('thing', true) }}",
    ):
        check_template("user", source)
        render(Texts("", source), {"labels": ["b", "a"], "problems": ["x"], "label": "l"})


def test_an_unknown_variable_names_those_that_there_are():
    with pytest.raises(InvalidInput, match="'labl'; the variables are label, context, labels"):
        check_template("user", "{{ labl }}")


def test_a_message_that_grows_too_long_is_stopped():
    texts = Texts(
        "", "{% for a in labels %}{% for b in labels %}{{ label }}{% endfor %}{% endfor %}"
    )
    check_template("user", texts.user)
    with pytest.raises(InvalidInput, match="grows beyond"):
        render(texts, {"labels": ["x"] * 1000, "label": "y" * 300})


PIECES = st.sampled_from(
    [
        *(f"{{{{ {name} }}}}" for name in VARIABLES),
        *(f"{{{{ {name} | {one} }}}}" for name in VARIABLES for one in FILTERS),
        "{% for a in labels %}",
        "{% for a in range(100) %}",
        "{% endfor %}",
        "{% if label %}",
        "{% endif %}",
        "{{ a }}",
        "{{ label ~ label }}",
        "text",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_whatever_passes_the_check_ends_or_says_why_not(source):
    try:
        check_template("user", source)
        render(Texts("", source), {"label": "x" * 300, "labels": ["y" * 300] * 5})
    except InvalidInput:
        pass
