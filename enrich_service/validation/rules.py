"""Small named rules that read one answer of a language model before anyone trusts it.

A prompt version carries its rules as data, `[{"rule": NAME, **options}, …]`. Each rule is a pure
function of an `Answer` and its options. A problem rejects the answer and is worded so that it can
be sent back to the model; a flag lets it pass and asks a person to look.

schema          the reply is JSON and fits the given JSON schema
count           there are as many sentences or captions as were asked for
empty           there is text, with letters in it
error_text      the text is an error message of a server, a proxy or a scraper
refusal         the model declines, or says that there is nothing to describe
chatter         the text speaks to the reader
placeholder     dots, "N/A", filler, or a sentence without anything that one can see
cut_off         the sentence stops in the middle
control         control characters, overrides of the writing direction, lost bytes
language        the text is not written in the language asked for
banned_words    words that the prompt's author does not want
duplicate       the text was accepted for another label already
wrong_label     the text is about another label
label_missing   the text does not name its label
length          the text is longer than the teacher reads (a flag)

What was accepted for other labels reaches the rules as one mapping (`Answer.others`), looked up
and never walked through, so the cost of a check does not grow with the label set.
"""

import difflib
import inspect
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from enrich_service.core.errors import InvalidInput
from enrich_service.prompts.answer_schema import SchemaValidator, check_references

ENGLISH = "English"


@dataclass(frozen=True)
class Answer:
    """One reply, read as far as it could be read.

    `texts` are the texts that training would see: one description, K sentences or captions, or
    the values of all attributes. `parsed` is None where the reply is no JSON object. `others`
    holds what is taken by other labels; fill it with `accepted_keys` and `label_key`.
    """

    label: str
    context: str | None
    kind: str  # as Prompt.kind
    raw: str
    parsed: dict[str, Any] | None
    texts: tuple[str, ...]
    others: Mapping[str, str]
    n: int | None = None  # texts asked for; None: the schema alone says how many
    language: str = ENGLISH  # asked for; rules that know English words only judge English

    @property
    def english(self) -> bool:
        """Whether English was asked for."""
        return self.language.casefold() in ("english", "en")

    @property
    def prose(self) -> tuple[str, ...]:
        """The texts that are sentences; an attribute's value ("red") is none."""
        return () if self.kind == "attributes" else self.texts


@dataclass(frozen=True)
class Verdict:
    """What the rules found. Each string begins with the name of its rule and a colon."""

    problems: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


Rule = Callable[..., Verdict]
Check = Callable[[Answer], Verdict]
PASSED = Verdict()


def check(rules: Sequence[Mapping[str, Any]], answer: Answer) -> Verdict:
    """Apply the rules in their order. Raises InvalidInput for an unknown rule or a bad option."""
    return prepare(rules)(answer)


def prepare(rules: Sequence[Mapping[str, Any]]) -> Check:
    """`check` for many answers: the rules are read once. Raises InvalidInput as it does."""
    ready = [(name, partial(RULES[name], **options)) for name, options in map(_named, rules)]

    def apply(answer: Answer) -> Verdict:
        problems: list[str] = []
        flags: list[str] = []
        for name, rule in ready:
            found = rule(answer)
            problems += [f"{name}: {reason}" for reason in found.problems]
            flags += [f"{name}: {reason}" for reason in found.flags]
        return Verdict(tuple(problems), tuple(flags))

    return apply


def check_rules(rules: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidInput, naming the rule, unless `check` can work with these rules."""
    for rule in rules:
        name, options = _named(rule)
        if name == "schema":
            _validator(json.dumps(options["schema"], sort_keys=True))


_ASCII_WORDS = {
    code: None if chr(code) == "'" else " " for code in range(128) if not chr(code).isalnum()
}


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """Lower-case words and digits, one space between them: what makes two texts the same text."""
    if text.isascii():  # most are, and what follows takes ten times as long
        return " ".join(text.lower().translate(_ASCII_WORDS).split())
    folded = text
    while (again := unicodedata.normalize("NFKC", folded).casefold()) != folded:
        folded = again
    # Marks stay: in Hindi or Arabic they are the vowels. Apostrophes vanish: "Brewer's", "Brewers".
    kept = ("" if c in "'’" else c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)
    once = " ".join("".join(kept).split())
    # Where an apostrophe kept a letter and a mark apart they may now melt into one.
    return once if once == text else normalise(once)


def label_key(label: str) -> str:
    """Key of `Answer.others` that says: this name belongs to that label."""
    return "label:" + " ".join(_singular(word) for word in normalise(label).split())


def accepted_keys(label: str, kind: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Keys under which an accepted answer enters `Answer.others` of the labels that follow.

    The texts as they are, the texts with their label's name taken out, and the name itself. The
    caption of an image says nothing of its label: two photos may look alike.
    """
    if kind == "image_caption":
        return ()
    keys = [key for text in _units(kind, texts) for key in (normalise(text), _masked(text, label))]
    return (*(key for key in keys if key), label_key(label))


def text_keys(kind: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Those of `accepted_keys` that no two labels may share, by the rule `duplicate`."""
    if kind == "image_caption":
        return ()
    return tuple(key for text in _units(kind, texts) if (key := normalise(text)))


# ---------------------------------------------------------------------------- the reply as a whole


def schema(answer: Answer, *, schema: dict[str, Any]) -> Verdict:
    """The reply is a JSON object that fits `schema` (JSON Schema, draft 2020-12)."""
    if answer.parsed is None:
        return Verdict(("the reply is not a JSON object; answer with the JSON object alone",))
    try:
        error = best_match(
            _validator(json.dumps(schema, sort_keys=True)).iter_errors(answer.parsed)
        )
    except (Unresolvable, RecursionError) as broken:
        raise InvalidInput(f"Rule schema: {_quote(str(broken))}; mend the schema") from broken
    if error is None:
        return PASSED
    where = "/".join(str(step) for step in error.absolute_path) or "the object"
    return Verdict((f"at {where}: {_quote(error.message, 160)}",))


def count(answer: Answer) -> Verdict:
    """As many sentences or captions as were asked for."""
    if answer.n is None or answer.kind not in ("sentences", "captions"):
        return PASSED
    if len(answer.texts) == answer.n:
        return PASSED
    return Verdict((f"there are {len(answer.texts)} {answer.kind}; give {answer.n}",))


def empty(answer: Answer) -> Verdict:
    """Every text has a letter or a digit in it, and there is at least one text."""
    if not answer.texts:
        return Verdict(("the reply holds no text; write the description",))
    if any(not normalise(text) for text in answer.texts):
        return Verdict(("a text has no words in it; write the description",))
    return PASSED


# This pattern and the next two ignore case, and are themselves in small letters: see `_search`.
_ERROR_TEXT = re.compile(
    r"""
      ^[^\w\n]*(?:
          (?:\w*error|exception)\b\s*(?:[:!.\d(]|$)   # "Error: …", "ValueError(…", "Error 500"
        | time(?:d\s+|-?)out\W*$
        | [45]\d\d\b.{0,40}\b(?:error|gateway|unavailable|forbidden|not\s+found|requests))
    | ^[ \t]*file\s+".+",\s+line\s+\d+
    | \b(?:
          (?:internal|network|server|connection|parse|syntax|unknown|unexpected)\s+
          (?:server\s+)?error\b
        | error\s+(?:code|message|occurred|while|generating|communicating)
        | (?:http|status)(?:/[\d.]+)?(?:\s+(?:status|code|error))*\s*[:=]?\s*[45]\d\d\b
        | too\s+many\s+requests\b | rate[\s-]?limit | at\s+capacity\b
        | quota\s+(?:was\s+|is\s+|has\s+been\s+)?exceeded | exceeded\s+your\s+(?:\w+\s+)?quota\b
        | bad\s+gateway\b | service\s+(?:is\s+)?(?:temporarily\s+)?unavailable\b
        | access\s+denied\b
        | (?:request|gateway|connection|read|session|operation)\s+(?:has\s+)?time(?:d\s+|-?)out\b
        | session\s+(?:has\s+|is\s+)?expired\b | (?:log|sign)\s*in\s+(?:again|to\s+continue)\b
        | connection\s+(?:was\s+)?(?:refused|reset|aborted|closed)\b
        | traceback\s+\(most | stack\s+trace\b
        | (?:unusable|invalid|empty|no)\s+response\b | something\s+went\s+wrong\b
        | please\s+try\s+again\b | try\s+again\s+later\b | api[\s_-]?key\b
        | cloudflare\b | enable\s+javascript\b
        | verify\s+(?:that\s+)?you\s+are\s+(?:a\s+)?human\b)
    | <!doctype\s+html | <html\b | <\?xml
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)


def error_text(answer: Answer) -> Verdict:
    """The text is not the message of a server, a proxy or a scraper that failed."""
    return _unlike(_ERROR_TEXT, answer, "is an error message, not a description")


_REFUSAL = re.compile(
    r"""
      \b(?:i['’]?\s?a?m|we\s+are|we['’]re)\s+(?:\w+\s+)?
      (?:sorry|afraid|unable|not\s+(?:able|sure|familiar|aware|allowed))\b
    | \bsorry,?\s+(?:but|i)\b | \b(?:my\s+)?apologies\b | \bi\s+apologi[sz]e\b
    | \bas\s+an?\s+(?:\w+\s+)?
      (?:ai\b|artificial\s+intelligence|(?:large\s+)?language\s+model|assistant\b|chatbot)
    | \b(?:i|we)\s+(?:\w+\s+)?(?:
          can\s?not | can['’]?t | could\s?n[o'’]t | could\s+not | won['’]?t | will\s+not
        | must\s+decline | do(?:n['’]t|\s+not)\s+(?:have|know))\b
    | \b(?:can\s?not|can['’]?t|unable\s+to|not\s+(?:possible|able)\s+to)\s+(?:be\s+)?
      (?:provide|describe|generate|assist|answer|fulfil|comply|give|offer|help)
    | \b(?:is|are)\s+too\s+(?:broad|vague|general|ambiguous)\b
    | \b(?:is|are)\s+not\s+an?\s+(?:(?:
          specific | particular | single | real | known | recogni[sz]ed | actual | physical
        | visual | valid | tangible)\s+)+\w+
    | \b(?:does|do)\s*(?:not|n['’]t)\s+have\s+(?:an?|any)\s+
      (?:(?:specific|particular|single|fixed|set|physical|visual|definite|distinct)\s+)*
      (?:shape|appearance|form|look)\b
    | \bthere\s+(?:is|are)\s+no\s+(?:such|specific|known|widely)\b
    | \b(?:not\s+enough|insufficient|more)\s+(?:information|context|details?)\s+
      (?:is|are|about|to|on|needed|required)\b
    | \b(?:violates?|against)\s+(?:\w+\s+){0,3}(?:polic(?:y|ies)|guidelines)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def refusal(answer: Answer) -> Verdict:
    """The model neither declines nor argues that there is nothing to describe."""
    return _unlike(_REFUSAL, answer, "declines to describe; describe what is usually seen")


_CHATTER = re.compile(
    r"""
      \b(?:assuming|if|since)\s+you\s*(?:['’]re|\s+are|\s+mean|\s+meant|\s+refer)
    | \byou(?:['’]re|\s+are)\s+(?:referring|asking|looking|talking)
    | \b(?:could|can|would)\s+you\s+(?:please\s+)?(?:provide|clarify|specify|give|tell)
    | \bplease\s+(?:provide|clarify|specify|note|let\s+me|feel\s+free)
    | \blet\s+me\s+know\b | \bi\s+hope\s+(?:this|that)\b | \bis\s+there\s+anything\s+else\b
    | ^[^\w\n]*(?:sure|certainly|of\s+course|absolutely|okay|great\s+question)\s*[,!.:]
    | ^[^\w\n]*here(?:['’]s|\s+is|\s+are)\s+(?:an?|the|my|your|one|some)\s+(?:\w+\s+){0,4}
      (?:descriptions?|sentences?|captions?|answers?|json|examples?)\b
    | \byour\s+(?:question|request|prompt|query)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def chatter(answer: Answer) -> Verdict:
    """The text describes; it does not speak to the person who asked."""
    return _unlike(_CHATTER, answer, "speaks to the reader; give the description alone")


_FILLER = re.compile(
    r"(?:n a|na|nil|none|null|nan|undefined|unknown|not (?:applicable|available|specified|known)|"
    r"tb[ad]|todo|fixme|test|foo(?: bar)?|x+|string|text|your text here|"
    r"(?:no |the |a |one |insert |your )*(?:descriptions?|sentences?|captions?|answers?)(?: here)?|"
    r"to be (?:determined|done|added)|lorem ipsum.*|(?:description )?(?:coming soon|goes here))"
)
_TEMPLATE = re.compile(
    r"\{\{.{0,80}?\}\}|\{\w+\}|\[(?:insert|your|label|name|object)\b[^]]{0,80}\]|<\w+>", re.I
)
# Words that say what can be seen; any one is enough. First stems ("strip" for stripes, striped),
# then words that must stand alone, since "ear" is no "early" and "tan" no "tank".
_VISIBLE = re.compile(
    r"\b(?:"
    r"yellow|orange|purple|brown|black|white|green|colou?r|iridescen|metal|transparent|translucent|"
    r"opaque|strip|spott|speckl|mottl|pattern|marking|gloss|shin[ey]|elongat|round|circ|rectang|"
    r"triang|spher|cylind|conic|cub|curv|taper|hollow|dome|spiral|coil|twist|fold|shape|hexagon|"
    r"crescent|angular|pointed|hook|forked|textur|wrinkl|ridg|groov|bump|layer|wooden|feather|"
    r"wool|plum|flower|bloss|petal|leaf|leaves|branch|bristl|whisker|tentacle|vertical|horizontal|"
    r"consist|compos|surround|resembl|decorat|adorn|stack|attach"
    r")\w*"
    r"|\b(?:made|built|formed)(?: up)? (?:of|from|out)\b"
    r"|\b(?:"
    r"red|gr[ae]y|blue|pink|tan|gold|golden|silver|beige|cream|crimson|scarlet|violet|maroon|dark|"
    r"bright|pale|hue|shade|tint|spot|clear|plain|large|small|big|tiny|huge|tall|short|long|wide|"
    r"broad|narrow|thick|thin|slender|slim|stout|plump|stocky|bulky|compact|massive|miniature|"
    r"sized|open|square|oval|oblong|cone|flat|straight|bent|arch|arched|boxy|smooth|rough|soft|hard|"
    r"fluffy|fuzzy|furry|hairy|shaggy|silky|wiry|scaly|spiny|spiky|prickly|sticky|slimy|crisp|"
    r"crispy|creamy|chunky|woven|mesh|knit|wood|steel|iron|brass|glass|plastic|paper|leather|"
    r"fabric|cloth|cotton|stone|brick|concrete|ceramic|rubber|clay|straw|fur|hair|skin|shell|scale|"
    r"head|face|eye|ear|nose|snout|beak|bill|mouth|tooth|teeth|tusk|horn|antler|crest|neck|body|"
    r"bodies|bodied|wing|tail|fin|leg|arm|hand|feet|foot|paw|claw|hoof|hooves|coat|belly|breast|"
    r"stem|root|trunk|bark|seed|spine|thorn|wheel|handle|blade|lid|base|frame|button|screen|door|"
    r"window|roof|wall|tower|pillar|strap|sleeve|collar|pipe|tube|spout|rim|edge|corner|surface"
    r")s?\b"
)


def _is_template(text: str, label: str) -> bool:
    """Whether something was to be filled in, which is not what the label's own name holds."""
    if not _TEMPLATE.search(text):
        return False
    return not _TEMPLATE.search(label) or bool(_TEMPLATE.search(text.replace(label, "")))


def placeholder(answer: Answer, *, min_words: Annotated[int, Field(ge=0, le=50)] = 4) -> Verdict:
    """The text is no filler, has `min_words` words, and says something that one can see."""
    hollow = [
        t for t in answer.texts if _FILLER.fullmatch(normalise(t)) or _is_template(t, answer.label)
    ]
    if answer.kind == "attributes":
        # "marks: none" is a fair answer for one attribute, not for all of them.
        found = tuple(f'the value "{_quote(t)}" is a placeholder' for t in hollow)
        return Verdict(found) if len(hollow) == len(answer.texts) else Verdict(flags=found)
    problems = [f'"{_quote(t)}" is a placeholder; write the description' for t in hollow]
    for text in answer.prose:
        words = normalise(text).split()
        if text in hollow or not words:  # no words at all: the rule `empty` says so
            continue
        if len(words) < min_words and _segmented(text):
            problems.append(f'"{_quote(text)}" is too short to describe anything')
        elif answer.kind == "image_caption":
            pass  # "a child holds a fish" is about what can be seen, without a word for looks
        elif answer.english and _latin(text) and not _VISIBLE.search(_without(text, answer.label)):
            problems.append("names no visible attribute; say shape, colour, parts or texture")
    return Verdict(tuple(problems))


_DANGLING = re.compile(
    r"(?:[,;:(\-–—/&]|\b(?:and|or|but|with|without|the|an?|of|to|its|their|which|that|is|are|has|have|"
    r"as|by|for|from|in|into|on|often|usually|typically|very))\W*$",
    re.IGNORECASE,
)
_ENDED = re.compile(r"[.!?。！？।؟…]['\"”’»)\]]*\s*$")


def cut_off(answer: Answer) -> Verdict:
    """No sentence stops in the middle. A mere missing full stop is a flag."""
    problems, flags = [], []
    for text in answer.prose:
        if not normalise(text):
            continue
        end = text.rstrip()[-80:]
        ended = _ENDED.search(end) and not end.endswith(("...", "…"))
        if not ended and _DANGLING.search(end):
            problems.append(f'the text stops in the middle, after "{_quote(text[-30:])}"')
        elif text.count("(") > text.count(")"):
            problems.append("a bracket is never closed: the text is cut off")
        elif not ended:
            flags.append("the last sentence has no full stop")
    return Verdict(tuple(problems), tuple(flags))


def control(answer: Answer) -> Verdict:
    """No control characters, no overrides of the writing direction, no bytes that were lost."""
    found = sorted(
        {c for text in answer.texts if not _plain(text) for c in text if _unprintable(c)}
    )
    if not found:
        return PASSED
    codes = ", ".join(f"U+{ord(c):04X}" for c in found[:5])
    return Verdict((f"the text holds characters that do not print ({codes}); write plain text",))


# Function words that any two sentences of the language hold.
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
    """Mostly Latin letters, and `min_share` of the words are everyday words of the language.

    Those are function words and the words for what can be seen, which terse lists consist of.
    Where another language than English was asked for, English is what is refused.
    """
    if not answer.english:
        return _not_english(answer)
    for text in answer.texts:
        if not _latin(text):
            return Verdict((f'"{_quote(text)}" is not in the language asked for ({language})',))
    for text in answer.prose:
        words = normalise(_without(text, answer.label)).split()
        hits = sum(
            word in _FUNCTION_WORDS[language] or bool(_VISIBLE.match(word)) for word in words
        )
        if len(words) >= 8 and hits < min_share * len(words):
            return Verdict((f'"{_quote(text)}" is not in the language asked for ({language})',))
    return PASSED


def _not_english(answer: Answer) -> Verdict:
    for text in answer.prose:
        words = normalise(_without(text, answer.label)).split()
        hits = sum(word in _FUNCTION_WORDS["en"] for word in words)
        if len(words) >= 8 and hits >= 0.3 * len(words):  # French or German have a tenth of them
            return Verdict((f'"{_quote(text)}" is English; write {_quote(answer.language)}',))
    return PASSED


Word = Annotated[str, StringConstraints(pattern=r"\w", max_length=100)]


def banned_words(answer: Answer, *, words: Annotated[list[Word], Field(min_length=1)]) -> Verdict:
    """None of `words` (or phrases) stands in a text; case and punctuation do not matter."""
    bodies = [f" {normalise(text)} " for text in answer.texts]
    found = [w for w in words if any(f" {normalise(w)} " in body for body in bodies)]
    return Verdict(tuple(f'do not use "{_quote(word)}"' for word in found))


# ------------------------------------------------------------------- the text and the labels' names


def duplicate(answer: Answer) -> Verdict:
    """No text stands for another label, or twice in the answer.

    Texts that are the same but for the label's name are a flag: close kin may look alike.
    """
    problems, flags = [], []
    seen: set[str] = set()
    for text in _units(answer.kind, answer.texts):
        key = normalise(text)
        if not key:
            continue
        if key in seen:
            problems.append(f'the answer says "{_quote(text)}" twice')
        seen.add(key)
        if (owner := answer.others.get(key, answer.label)) != answer.label:
            problems.append(f'the text is the same as the one of "{_quote(owner)}"')
            continue
        owner = answer.others.get(_masked(text, answer.label), answer.label)
        if owner != answer.label:
            flags.append(f'but for the name, the text is the one of "{_quote(owner)}"')
    return Verdict(tuple(problems), tuple(flags))


def wrong_label(answer: Answer) -> Verdict:
    """The text does not begin with another label's name while its own is nowhere in it."""
    own = set(_words(answer.label))
    for text in answer.prose:
        if _named_in(text, answer.label) == "whole":
            continue
        words = _words(text)
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
    """The text names its label, or a clear part of it; plural and spelling do not matter.

    A flag unless asked otherwise: of 1,603 lines of ChatGPT the dozen without the name are sound.
    """
    for text in answer.prose:
        if normalise(text) and normalise(answer.label) and _named_in(text, answer.label) is None:
            found = (f'the text does not name "{_quote(answer.label)}"',)
            return Verdict(found) if verdict == "problem" else Verdict(flags=found)
    return PASSED


# ------------------------------------------------------------------------------------ the teacher


def length(answer: Answer, *, max_tokens: Annotated[int, Field(ge=8, le=8192)] = 77) -> Verdict:
    """The teacher reads the whole text, start and end token included. Only ever a flag.

    A description is counted as the teacher gets it, behind "a photo of {label} . ".
    """
    prefix = f"a photo of {answer.label} . " if answer.kind == "description" else ""
    longest = max((estimate_tokens(prefix + text) for text in answer.texts), default=0)
    if longest <= max_tokens:
        return PASSED
    return Verdict(flags=(f"about {longest} tokens; the teacher reads {max_tokens}",))


# Words of descriptions by their number of CLIP tokens, where the length of the word misleads.
_TOKENS: Mapping[str, int] = {
    word: count
    for count, words in {
        1: "american appearance arranged athletic attached branches brightly building buttons "
        "carrying central ceramic circular clusters colored colorful compact consisting consists "
        "container containing contrasting control controls covered covering decorative delicate "
        "designed digital display distinct distinctive electronic elegant extending feathers "
        "features featuring feeding filling fitting flowering flowers flowing frequently garment "
        "generally handheld holding horizontal including ingredients insects instrument keyboard "
        "leather machine markings material materials mechanism mounted multiple muscular musical "
        "objects opening patches pattern patterns plastic platform pointed powerful produce "
        "produces prominent protect rectangular reddish relatively resemble rounded running "
        "seafood several slender slightly sparrow straight streaks striking strings striped "
        "stripes structure support surface surrounded surrounding terrier texture through tightly "
        "together toppings towards trumpet typically upright usually variety various vegetables "
        "vehicle vertical visible warbler windows",
        2: "antennae breasted brownish bulky bushy characterized coloration computer conical "
        "droopy elongated erect flared flattened forked garnished grayish hinged iridescent "
        "mottled mouthpiece muzzle oblong perching plumage plump resembling showy sloping "
        "snout songbird spherical spiky spiny stamens stocky streamlined tapered triangular "
        "underparts unique upperparts webbed",
        3: "abdomen bulbous carapace cylindrical drooping florets garnishes indentation "
        "overlapping predominantly protruding scavenging turrets",
        4: "cephalothorax conspicuously exoskeleton prehensile",
    }.items()
    for word in words.split()
}
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)


def estimate_tokens(text: str) -> int:
    """Number of CLIP's BPE tokens of a text, start and end included, without the vocabulary.

    CLIP lower-cases and cuts a text into runs of letters, single digits and runs of punctuation,
    then merges bytes by a learnt table. Here a run of letters costs one token, and more the longer
    it is; letters outside ASCII cost their bytes. Fitted so that real descriptions are hardly ever
    under-counted (never by more than 2) and over-counted by a tenth on average.
    """
    pieces = _PIECE.findall(text.lower())
    return round(2 + sum(map(_tokens_of, pieces)) + min(3.0, len(pieces) / 5))


@lru_cache(maxsize=20_000)
def _tokens_of(piece: str) -> float:
    """About the number of tokens of a run of letters, a digit or a run of punctuation."""
    extra = len(piece.encode(errors="replace")) - len(piece)
    if extra or not piece.isalpha():
        return 1 + extra
    by_length = 1 + 0.043 * max(0, len(piece) - 4) + 0.231 * max(0, len(piece) - 7)
    return _TOKENS.get(piece, by_length)


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
# `schema` needs the version's own schema and `banned_words` its words: they are added per prompt.
DEFAULT_RULES: list[dict[str, Any]] = [
    {"rule": name} for name in RULES if name not in {"schema", "banned_words"}
]


def _named(rule: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and checked options of a rule as a prompt version writes it."""
    if not isinstance(rule, Mapping) or not isinstance(rule.get("rule"), str):
        raise InvalidInput('A rule is an object like {"rule": "refusal"}; give each its name')
    name = rule["rule"]
    if name not in RULES:
        raise InvalidInput(f'Unknown rule "{_quote(name)}"; there are {", ".join(RULES)}')
    options = {option: value for option, value in rule.items() if option != "rule"}
    known = _OPTIONS[name]
    for option, value in options.items():
        if option not in known:
            can = ", ".join(known) or "none"
            raise InvalidInput(f'Rule {name} has no option "{_quote(option)}"; its options: {can}')
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
    """The compiled schema. Raises InvalidInput if it is none, or points outside itself."""
    loaded = json.loads(schema_json)
    try:
        SchemaValidator.check_schema(loaded)
        check_references(loaded)
        # An empty registry: nothing is ever fetched from the address that a schema names.
        validator = SchemaValidator(loaded, registry=Registry())
        validator.is_valid({})
    except SchemaError as error:
        raise InvalidInput(f"Rule schema: no JSON schema: {_quote(error.message, 160)}") from error
    except (Unresolvable, RecursionError) as error:
        reason = _quote(str(error), 160)
        raise InvalidInput(f"Rule schema: a $ref leads nowhere or in a circle: {reason}") from error
    return validator


def _unlike(pattern: re.Pattern[str], answer: Answer, reason: str) -> Verdict:
    """A problem for each text (or for a reply without texts) in which the pattern is found."""
    bodies = answer.texts or (answer.raw,)
    found = [text[slice(*match.span())] for text in bodies if (match := _search(pattern, text))]
    return Verdict(tuple(f'"{_quote(match)}" {reason}' for match in found))


def _search(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """`pattern.search(text)` of a pattern in small letters that ignores case; `text` in any."""
    if text.isascii():  # most are, and to ignore case takes twice as long
        return _heeding_case(pattern).search(text.lower())
    return pattern.search(text)


@lru_cache
def _heeding_case(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(pattern.pattern, pattern.flags & ~re.IGNORECASE)


def _units(kind: str, texts: Sequence[str]) -> Sequence[str]:
    """What has to differ between labels: each text, or all attributes taken together."""
    return ("; ".join(texts),) if kind == "attributes" and texts else texts


def _quote(text: str, limit: int = 60) -> str:
    """A piece of foreign text for a message: one line, printable, bounded."""
    line = " ".join("".join(" " if _unprintable(c) else c for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _unprintable(character: str) -> bool:
    if character in "\r\n\t\u200c\u200d":  # line breaks; joiners, which Persian and emoji need
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
    """False for scripts that write no spaces between words, where words cannot be counted."""
    return not any("\u0e00" <= c <= "\u0fff" or "\u3040" <= c <= "\u9fff" for c in text)


_PLURALS = {
    "geese": "goose",
    "oxen": "ox",
    "mice": "mouse",
    "feet": "foot",
    "teeth": "tooth",
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
}


@lru_cache(maxsize=4096)
def _singular(word: str) -> str:
    """A rough singular, the same for both numbers of a word; it need not be a word itself."""
    if word in _PLURALS:
        return _PLURALS[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith("ves"):
        return word[:-3] + "f"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "oes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "su" else word


@lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_singular(word) for word in normalise(text).split())


def _spans(words: tuple[str, ...], name: tuple[str, ...]) -> Iterator[int]:
    """Where `name` begins in `words`."""
    n = len(name)
    return (i for i in range(len(words) - n + 1) if n and words[i : i + n] == name)


@lru_cache(maxsize=4096)
def _without(text: str, label: str) -> str:
    """The text's words without its label's name: "goldfish" is no golden colour."""
    words, name = normalise(text).split(), _words(label)
    gone = {i + k for i in _spans(_words(text), name) for k in range(len(name))}
    return " ".join(word for i, word in enumerate(words) if i not in gone)


def _masked(text: str, label: str) -> str:
    """Key of a text with its label's name taken out; "" where too little is left to compare."""
    rest = _without(text, label)
    return f"rest:{rest}" if len(rest.split()) >= 3 else ""


def _named_in(text: str, label: str) -> Literal["whole", "part"] | None:
    """How a text names a label: all of it, a telling part of it, or not at all."""
    words, name = _words(text), _words(label)
    if any(True for _ in _spans(words, name)):
        return "whole"
    joined = "".join(name)
    if len(joined) >= 5 and joined in "".join(words):  # "gas mask", "gasmask"
        return "whole"
    telling = [word for word in name if len(word) >= 3] or name
    return "part" if any(_alike(word, other) for word in telling for other in words) else None


def _alike(word: str, other: str) -> bool:
    """The same word, a longer form ("sax", "saxophone") or another spelling ("disc", "disk")."""
    if word == other:
        return True
    if min(len(word), len(other)) < 4:
        return False
    if word.startswith(other) or other.startswith(word):
        return True
    if abs(len(word) - len(other)) > 2 or word[0] != other[0]:
        return False
    return difflib.SequenceMatcher(None, word, other, autojunk=False).ratio() >= 0.75
