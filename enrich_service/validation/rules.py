"""Named rules that check one answer of a language model.

A prompt version carries its rules as data, `[{"rule": NAME, **options}, …]`. Each rule is a pure
function of an `Answer` and its options. A problem rejects the answer, and its text is sent back to
the model; a flag accepts the answer and marks it for review.

Each rule reports:
schema          the reply is not JSON, or does not match the given JSON schema
count           the number of sentences or captions differs from the requested number
empty           the reply has no text, or a text without letters
error_text      the text is an error message of a server, a proxy or a scraper
refusal         the model declines, or states that there is nothing to describe
chatter         the text addresses the reader
placeholder     dots, "N/A", filler, or a sentence without a visible property
cut_off         the sentence is truncated
control         control characters, bidirectional overrides, replacement characters
language        the text is not in the requested language
banned_words    words that the prompt's author has banned
duplicate       the text was already accepted for another label
wrong_label     the text is about another label
label_missing   the text does not contain its label
length          the text is longer than the teacher's limit (a flag)

The accepted texts of other labels are one mapping (`Answer.others`), which is only looked up and
never iterated, so the cost of a check does not grow with the label set.
"""

import inspect
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from enrich_service.core.errors import InvalidInput
from enrich_service.validation.answer import PASSED, Answer, Check, Rule, Verdict, units_of
from enrich_service.validation.answer_schema import SchemaValidator, check_references
from enrich_service.validation.lexicon import (
    CHATTER,
    DANGLING,
    ENDED,
    ERROR_TEXT,
    FILLER,
    REFUSAL,
    TEMPLATE,
    VISIBLE,
    search,
)
from enrich_service.validation.similarity import (
    named_in,
    normalise,
    without_name,
    without_name_key,
    words_of,
)
from enrich_service.validation.token_count import estimate_tokens


def check(rules: Sequence[Mapping[str, Any]], answer: Answer) -> Verdict:
    """Apply the rules in order. Raises InvalidInput for an unknown rule or an invalid option."""
    return prepare(rules)(answer)


def prepare(rules: Sequence[Mapping[str, Any]]) -> Check:
    """`check` for many answers: the rules are parsed once. Raises InvalidInput as `check` does."""
    ready = [(name, partial(RULES[name], **options)) for name, options in map(_parsed, rules)]

    def apply(answer: Answer) -> Verdict:
        problems: list[str] = []
        flags: list[str] = []
        for name, rule in ready:
            verdict = rule(answer)
            problems += [f"{name}: {reason}" for reason in verdict.problems]
            flags += [f"{name}: {reason}" for reason in verdict.flags]
        return Verdict(tuple(problems), tuple(flags))

    return apply


def check_rules(rules: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidInput, naming the rule, if the rules are invalid for `check`."""
    for rule in rules:
        name, options = _parsed(rule)
        if name == "schema":
            _validator(json.dumps(options["schema"], sort_keys=True))


def schema(answer: Answer, *, schema: dict[str, Any]) -> Verdict:
    """The reply is a JSON object that fits `schema` (JSON Schema, draft 2020-12)."""
    if answer.parsed is None:
        return Verdict(("the reply is not a JSON object; answer with the JSON object alone",))
    try:
        error = best_match(
            _validator(json.dumps(schema, sort_keys=True)).iter_errors(answer.parsed)
        )
    except (Unresolvable, RecursionError) as broken:
        raise InvalidInput(f"Rule schema: {_quote(str(broken))}; fix the schema") from broken
    if error is None:
        return PASSED
    where = "/".join(str(step) for step in error.absolute_path) or "the object"
    return Verdict((f"at {where}: {_quote(error.message, 160)}",))


def count(answer: Answer) -> Verdict:
    """As many sentences or captions as requested."""
    if answer.n is None or answer.kind not in ("sentences", "captions"):
        return PASSED
    if len(answer.texts) == answer.n:
        return PASSED
    return Verdict((f"there are {len(answer.texts)} {answer.kind}; give {answer.n}",))


def empty(answer: Answer) -> Verdict:
    """There is at least one text, and every text contains a letter or a digit."""
    if not answer.texts:
        return Verdict(("the reply holds no text; write the description",))
    if any(not normalise(text) for text in answer.texts):
        return Verdict(("a text has no words in it; write the description",))
    return PASSED


def error_text(answer: Answer) -> Verdict:
    """The text is not an error message of a server, proxy or scraper."""
    return _matches(ERROR_TEXT, answer, "is an error message, not a description")


def refusal(answer: Answer) -> Verdict:
    """The model neither declines nor argues that there is nothing to describe."""
    return _matches(REFUSAL, answer, "declines to describe; describe what is usually seen")


def chatter(answer: Answer) -> Verdict:
    """The text describes the class and does not address the user."""
    return _matches(CHATTER, answer, "speaks to the reader; give the description alone")


def _is_template(text: str, label: str) -> bool:
    """Whether the text contains an unfilled placeholder that is not part of the label's name."""
    if not TEMPLATE.search(text):
        return False
    return not TEMPLATE.search(label) or bool(TEMPLATE.search(text.replace(label, "")))


def placeholder(answer: Answer, *, min_words: Annotated[int, Field(ge=0, le=50)] = 4) -> Verdict:
    """The text is not filler, has `min_words` words, and names a visible property."""
    fillers = [
        t for t in answer.texts if FILLER.fullmatch(normalise(t)) or _is_template(t, answer.label)
    ]
    if answer.kind == "attributes":
        # "marks: none" is valid for one attribute, but not for all.
        found = tuple(f'the value "{_quote(t)}" is a placeholder' for t in fillers)
        return Verdict(found) if len(fillers) == len(answer.texts) else Verdict(flags=found)
    problems = [f'"{_quote(t)}" is a placeholder; write the description' for t in fillers]
    for text in answer.prose:
        words = normalise(text).split()
        if text in fillers or not words:  # without words: see the rule `empty`
            continue
        if len(words) < min_words and _segmented(text):
            problems.append(f'"{_quote(text)}" is too short to describe anything')
        elif answer.kind == "image_caption":
            pass  # "a child holds a fish" is visible, without a word for appearance
        elif (
            answer.english and _latin(text) and not VISIBLE.search(without_name(text, answer.label))
        ):
            problems.append("names no visible attribute; say shape, colour, parts or texture")
    return Verdict(tuple(problems))


def cut_off(answer: Answer) -> Verdict:
    """No sentence is truncated. A missing full stop alone is a flag."""
    problems, flags = [], []
    for text in answer.prose:
        if not normalise(text):
            continue
        end = text.rstrip()[-80:]
        ended = ENDED.search(end) and not end.endswith(("...", "…"))
        if not ended and DANGLING.search(end):
            problems.append(f'the text stops in the middle, after "{_quote(text[-30:])}"')
        elif text.count("(") > text.count(")"):
            problems.append("a bracket is never closed: the text is cut off")
        elif not ended:
            flags.append("the last sentence has no full stop")
    return Verdict(tuple(problems), tuple(flags))


def control(answer: Answer) -> Verdict:
    """No control characters, no bidirectional overrides, no replacement characters."""
    found = sorted(
        {c for text in answer.texts if not _plain(text) for c in text if _unprintable(c)}
    )
    if not found:
        return PASSED
    codes = ", ".join(f"U+{ord(c):04X}" for c in found[:5])
    return Verdict((f"the text holds characters that do not print ({codes}); write plain text",))


# Frequent function words of the language.
_FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    "en": frozenset(
        re.findall(
            r"\w+",
            "a an the and or of with in on at to from for by as is are was be been has have having "
            "its it that which this these their they often typically usually can may when while "
            "used made around along over under between into up both two one more most other such "
            "not but",
        )
    )
}


def language(
    answer: Answer,
    *,
    language: Literal["en"] = "en",
    min_share: Annotated[float, Field(ge=0, le=1)] = 0.25,
) -> Verdict:
    """Mostly Latin letters, and at least `min_share` of the words are common words of the language.

    Common words are function words and words for visible properties, as in terse lists. If
    another language than English is requested, English is rejected.
    """
    if not answer.english:
        return _not_english(answer)
    for text in answer.texts:
        if not _latin(text):
            return Verdict((f'"{_quote(text)}" is not in the language asked for ({language})',))
    for text in answer.prose:
        words = normalise(without_name(text, answer.label)).split()
        hits = sum(word in _FUNCTION_WORDS[language] or bool(VISIBLE.match(word)) for word in words)
        if len(words) >= 8 and hits < min_share * len(words):
            return Verdict((f'"{_quote(text)}" is not in the language asked for ({language})',))
    return PASSED


def _not_english(answer: Answer) -> Verdict:
    for text in answer.prose:
        words = normalise(without_name(text, answer.label)).split()
        hits = sum(word in _FUNCTION_WORDS["en"] for word in words)
        if len(words) >= 8 and hits >= 0.3 * len(words):  # French and German texts have about 10 %
            return Verdict((f'"{_quote(text)}" is English; write {_quote(answer.language)}',))
    return PASSED


Word = Annotated[str, StringConstraints(pattern=r"\w", max_length=100)]


def banned_words(answer: Answer, *, words: Annotated[list[Word], Field(min_length=1)]) -> Verdict:
    """None of `words` (or phrases) occurs in a text, ignoring case and punctuation."""
    bodies = [f" {normalise(text)} " for text in answer.texts]
    found = [w for w in words if any(f" {normalise(w)} " in body for body in bodies)]
    return Verdict(tuple(f'do not use "{_quote(word)}"' for word in found))


def duplicate(answer: Answer) -> Verdict:
    """No text is that of another label, or occurs twice in the answer.

    Texts that are equal except for the label's name are a flag: closely related classes may look
    alike.
    """
    problems, flags = [], []
    seen: set[str] = set()
    for text in units_of(answer.kind, answer.texts):
        key = normalise(text)
        if not key:
            continue
        if key in seen:
            problems.append(f'the answer says "{_quote(text)}" twice')
        seen.add(key)
        if (owner := answer.others.get(key, answer.label)) != answer.label:
            problems.append(f'the text is the same as the one of "{_quote(owner)}"')
            continue
        owner = answer.others.get(without_name_key(text, answer.label), answer.label)
        if owner != answer.label:
            flags.append(f'but for the name, the text is the one of "{_quote(owner)}"')
    return Verdict(tuple(problems), tuple(flags))


def wrong_label(answer: Answer) -> Verdict:
    """The text does not begin with another label's name unless it also contains its own."""
    own = set(words_of(answer.label))
    for text in answer.prose:
        if named_in(text, answer.label) == "whole":
            continue
        words = words_of(text)
        if words and words[0] in {"a", "an", "the"}:
            words = words[1:]
        for n in range(min(5, len(words)), 0, -1):
            if own.issuperset(words[:n]):  # "bear" in the text of "brown bear"
                continue
            owner = answer.others.get("label:" + " ".join(words[:n]))
            if owner is not None and owner != answer.label:
                return Verdict((f'the text is about "{_quote(owner)}", not "{answer.label}"',))
    return PASSED


def label_missing(answer: Answer, *, verdict: Literal["problem", "flag"] = "flag") -> Verdict:
    """The text contains its label, or a distinctive part of it, in any number or spelling.

    A flag by default: of 1,603 lines of ChatGPT the dozen without the name are correct.
    """
    for text in answer.prose:
        if normalise(text) and normalise(answer.label) and named_in(text, answer.label) is None:
            found = (f'the text does not name "{_quote(answer.label)}"',)
            return Verdict(found) if verdict == "problem" else Verdict(flags=found)
    return PASSED


def length(answer: Answer, *, max_tokens: Annotated[int, Field(ge=8, le=8192)] = 77) -> Verdict:
    """The teacher reads the whole text, including start and end token. Only ever a flag.

    A description is counted as the teacher gets it, after "a photo of {label} . ".
    """
    prefix = f"a photo of {answer.label} . " if answer.kind == "description" else ""
    longest = max((estimate_tokens(prefix + text) for text in answer.texts), default=0)
    if longest <= max_tokens:
        return PASSED
    return Verdict(flags=(f"about {longest} tokens; the teacher reads {max_tokens}",))


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        schema,
        count,
        empty,
        error_text,
        refusal,
        chatter,
        placeholder,
        cut_off,
        control,
        language,
        banned_words,
        duplicate,
        wrong_label,
        label_missing,
        length,
    )
}
_OPTIONS: dict[str, dict[str, TypeAdapter[Any]]] = {
    name: {
        option.name: TypeAdapter(option.annotation)
        for option in inspect.signature(rule).parameters.values()
        if option.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, rule in RULES.items()
}
_REQUIRED: dict[str, set[str]] = {
    name: {
        option.name
        for option in inspect.signature(rule).parameters.values()
        if option.kind is inspect.Parameter.KEYWORD_ONLY and option.default is option.empty
    }
    for name, rule in RULES.items()
}
# `schema` and `banned_words` need options of the prompt version and are added for each prompt.
DEFAULT_RULES: list[dict[str, Any]] = [
    {"rule": name} for name in RULES if name not in {"schema", "banned_words"}
]


def _parsed(rule: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and checked options of a rule of a prompt version. Raises InvalidInput."""
    if not isinstance(rule, Mapping) or not isinstance(rule.get("rule"), str):
        raise InvalidInput('A rule is an object like {"rule": "refusal"}: give its name')
    name = rule["rule"]
    if name not in RULES:
        raise InvalidInput(f'Unknown rule "{_quote(name)}"; the rules are {", ".join(RULES)}')
    options = {option: value for option, value in rule.items() if option != "rule"}
    known = _OPTIONS[name]
    for option, value in options.items():
        if option not in known:
            allowed = ", ".join(known) or "none"
            raise InvalidInput(
                f'Rule {name} has no option "{_quote(option)}"; its options: {allowed}'
            )
        try:
            known[option].validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise InvalidInput(f"Rule {name}, option {option}: {_quote(reason, 160)}") from error
    if missing := _REQUIRED[name] - options.keys():
        raise InvalidInput(f'Rule {name} needs the option "{min(missing)}"')
    return name, options


@lru_cache(maxsize=64)
def _validator(schema_json: str) -> Draft202012Validator:
    """The compiled schema. Raises InvalidInput if it is invalid or refers to other documents."""
    loaded = json.loads(schema_json)
    try:
        SchemaValidator.check_schema(loaded)
        check_references(loaded)
        # An empty registry, so that nothing is fetched from a URL.
        validator = SchemaValidator(loaded, registry=Registry())
        validator.is_valid({})
    except SchemaError as error:
        raise InvalidInput(
            f"Rule schema: not a valid JSON schema: {_quote(error.message, 160)}"
        ) from error
    except (Unresolvable, RecursionError) as error:
        reason = _quote(str(error), 160)
        raise InvalidInput(f"Rule schema: a $ref is unresolvable or circular: {reason}") from error
    return validator


def _matches(pattern: re.Pattern[str], answer: Answer, reason: str) -> Verdict:
    """A problem for each text (or for a reply without texts) that matches the pattern."""
    bodies = answer.texts or (answer.raw,)
    found = [text[slice(*match.span())] for text in bodies if (match := search(pattern, text))]
    return Verdict(tuple(f'"{_quote(match)}" {reason}' for match in found))


def _quote(text: str, limit: int = 60) -> str:
    """A short, printable, one-line excerpt of a text, for messages."""
    line = " ".join("".join(" " if _unprintable(c) else c for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _unprintable(character: str) -> bool:
    if character in "\r\n\t\u200c\u200d":  # line breaks, and joiners for Persian and emoji
        return False
    return character == "\ufffd" or unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs"}


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")


def _latin(text: str) -> bool:
    if text.isascii():
        return True
    letters = [c for c in text if c.isalpha()]
    return sum(map(_is_latin, letters)) >= 0.8 * len(letters)


def _segmented(text: str) -> bool:
    """False for scripts without spaces between words, in which words cannot be counted."""
    return not any("\u0e00" <= c <= "\u0fff" or "\u3040" <= c <= "\u9fff" for c in text)
