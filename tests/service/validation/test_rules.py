"""The rules against every line that ChatGPT really wrote for five data sets, and against the odd.

FAULTY and DEBATABLE come from reading all 1,603 lines, not from what the rules say. The words for
visible things were then widened until few sound lines were refused, and the token estimate was
fitted to these lines: the counts say how the rules do here, not how they do on unseen texts.
"""

import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrich_service.core.errors import InvalidInput
from enrich_service.validation.answer import Answer, Verdict
from enrich_service.validation.rules import DEFAULT_RULES, RULES, check, check_rules
from enrich_service.validation.similarity import accepted_keys, label_key, normalise
from enrich_service.validation.token_count import estimate_tokens

TINY = "bench/tiny-imagenet-ood"
BIRDS = "paper/CaltechBirds"
FLOWERS = "paper/Flower102"
FOOD = "paper/Food101"
TIERED = "paper/tiered-ImageNet"
FILES = (TINY, BIRDS, FLOWERS, FOOD, TIERED)

# file, line, label, why nobody should train on the line, the rule that has to say so
FAULTY = (
    (TINY, 189, "banana", "message of the scraper", "error_text"),
    (TINY, 198, "lakeside", "message of the scraper", "error_text"),
    (BIRDS, 98, "Scott Oriole", "a dot", "empty"),
    (BIRDS, 103, "Sayornis", "refuses: a genus, too broad", "refusal"),
    (BIRDS, 108, "White necked Raven", "a dot", "empty"),
    (FLOWERS, 45, "bolero deep blue", "a dot", "empty"),
    (FOOD, 29, "croque madame", "the letter in 'béchamel' is lost", "control"),
    (FOOD, 85, "risotto", "the letter in 'sautéed' is lost", "control"),
    (TIERED, 214, "tusker", "a dot", "empty"),
    (TIERED, 245, "pirate", "argues that there is no shape or appearance", "refusal"),
    (TIERED, 323, "banana", "message of the scraper", "error_text"),
    (TIERED, 366, "lakeside", "message of the scraper", "error_text"),
    (TIERED, 383, "cock", "begins by talking to the person who asked", "chatter"),
    (TIERED, 477, "thunder snake", "a dot", "empty"),
    (TIERED, 502, "whistle", "a dot", "empty"),
    (TIERED, 503, "wing", "a dot", "empty"),
    (TIERED, 848, "groom", "a dot", "empty"),
    (TIERED, 915, "nipple", "a dot", "empty"),
    (TIERED, 954, "ballplayer", "a dot", "empty"),
)

# Counted neither as faulty nor as sound. Most are true of the name as it stands, but of another
# sense of it than the pictures show; nothing in label or text tells, only a context could.
DEBATABLE = (
    (TINY, 71, "beach wagon", "a cart; the pictures show a car"),
    (TINY, 79, "brass", "the alloy; the pictures show memorial plates"),
    (TINY, 100, "drumstick", "bone and percussion stick in one"),
    (TINY, 162, "teddy", "the undergarment; the pictures show toy bears"),
    (TINY, 194, "espresso", "the beverage has 'a small, cylindrical shape'"),
    (BIRDS, 30, "Fish Crow", "the American Crow's text, 'but smaller in size'"),
    (BIRDS, 66, "Western Gull", "the Herring Gull's text with two words added"),
    (TIERED, 39, "sorrel", "the herb; the pictures show horses"),
    (TIERED, 199, "Madagascar cat", "a fossa; the pictures show lemurs"),
    (TIERED, 264, "amphibian", "the animal; the pictures show vehicles"),
    (TIERED, 266, "beach wagon", "a cart; the pictures show a car"),
    (TIERED, 305, "file", "the tool; the pictures show cabinets"),
    (TIERED, 329, "ear", "the organ; the pictures show maize"),
    (TIERED, 511, "mouse", "the animal; the pictures show computer mice"),
    (TIERED, 557, "slot", "an opening; the pictures show gambling machines"),
    (TIERED, 574, "sunglass", "nearly the text of 'sunglasses', whose synonym it is"),
    (TIERED, 575, "pick", "the pickaxe; the pictures show plectra"),
    (TIERED, 659, "iron", "the metal; the pictures show flat irons"),
    (TIERED, 716, "brass", "the alloy; the pictures show memorial plates"),
    (TIERED, 786, "teddy", "the undergarment; the pictures show toy bears"),
    (TIERED, 799, "drumstick", "bone and percussion stick in one"),
    (TIERED, 947, "espresso", "the beverage has 'a small, cylindrical shape'"),
)


def answer(label="goldfish", *texts, kind="description", others=None, parsed=None, raw=""):
    return Answer(label, None, kind, raw, parsed, texts, others or {})


def problems(name, *args, options=None, **kwargs):
    return check([{"rule": name, **(options or {})}], answer(*args, **kwargs)).problems


def read_pairs(shared: Path, file: str) -> list[tuple[int, str, str]]:
    names = (shared / file / "label2text.txt").read_text().splitlines()
    texts = (shared / file / "chatgpt.txt").read_text().split("\n")
    return [
        (number, name.split()[-1].replace("_", " ").strip(), text)
        for number, (name, text) in enumerate(zip(names, texts, strict=False), 1)
    ]


@pytest.fixture(scope="module")
def verdicts(shared):
    """(file, line) → (label, text, verdict), each file judged in order like a run of its own."""
    found = {}
    for file in FILES:
        pairs = read_pairs(shared, file)
        others = {label_key(label): label for _, label, _ in pairs}
        for number, label, text in pairs:
            verdict = check(DEFAULT_RULES, answer(label, text, others=others))
            found[file, number] = (label, text, verdict)
            if not verdict.problems:
                for key in accepted_keys(label, "description", (text,)):
                    others.setdefault(key, label)
    assert len(found) == 1603
    return found


@pytest.mark.parametrize(("file", "line", "label", "why", "rule"), FAULTY)
def test_each_faulty_line_of_chatgpt_is_caught_for_its_own_reason(
    verdicts, file, line, label, why, rule
):
    name, _, verdict = verdicts[file, line]
    assert name == label
    assert any(problem.startswith(f"{rule}: ") for problem in verdict.problems), (why, verdict)


def test_at_most_one_sound_line_in_a_hundred_is_refused(verdicts):
    faulty = {row[:2] for row in FAULTY}
    debatable = {row[:2] for row in DEBATABLE}
    assert not faulty & debatable
    assert all(verdicts[row[:2]][0] == row[2] for row in DEBATABLE)
    sound = {where: v for where, v in verdicts.items() if where not in faulty | debatable}
    alarms = {where: v for where, v in sound.items() if v[2].problems}
    flagged = {where: v for where, v in sound.items() if v[2].flags}
    print(
        f"{len(verdicts)} lines: {len(faulty)} faulty, {len(debatable)} debatable, "
        f"{len(sound)} sound; {len(alarms)} false alarms, {len(flagged)} flagged"
    )
    for (file, line), (label, _, verdict) in alarms.items():
        print(f"false alarm: {file} {line} {label}: {verdict.problems}")
    assert len(alarms) <= 0.01 * len(sound)
    assert len(flagged) <= 0.02 * len(sound)


def test_a_text_that_slipped_to_another_label_is_nearly_always_caught(shared):
    caught = flagged = total = 0
    for file in FILES:
        pairs = [pair for pair in read_pairs(shared, file) if len(pair[2]) > 1]
        others = {label_key(label): label for _, label, _ in pairs}
        for i, (_, label, _) in enumerate(pairs):
            text = pairs[(i + 37) % len(pairs)][2]
            rules = [{"rule": "wrong_label"}, {"rule": "label_missing"}]
            verdict = check(rules, answer(label, text, others=others))
            total += 1
            caught += bool(verdict.problems)
            flagged += bool(verdict.flags or verdict.problems)
    print(f"{total} slipped texts: {caught} refused, {flagged} refused or flagged")
    assert caught >= 0.95 * total
    assert flagged == total


def test_the_token_estimate_follows_clip_on_every_line(shared):
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    texts = {text for file in FILES for _, _, text in read_pairs(shared, file) if len(text) > 1}
    excess = {t: estimate_tokens(t) - (len(tokenizer.encode(t)) + 2) for t in texts}
    relative = [over / (estimate_tokens(text) - over) for text, over in excess.items()]
    print(f"under by at most {-min(excess.values())}, mean {sum(relative) / len(relative):+.1%}")
    assert min(excess.values()) >= -2
    assert abs(sum(relative) / len(relative)) <= 0.1


REFUSALS = (
    "I'm sorry, but I cannot help with that request about goldfish.",
    "I’m sorry, I can’t describe a goldfish.",
    "As an AI language model, I do not have eyes, but a goldfish is orange.",
    "Unfortunately, I am unable to say what a red goldfish looks like.",
    "I don't have enough information about this orange goldfish.",
    "There is no such animal as a round goldfish.",
)
ERRORS = (
    "Error: 429 Too Many Requests",
    "Error",
    "timeout",
    "Request timed out.",
    "HTTP 503 Service Unavailable",
    "502 Bad Gateway",
    "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>",
    'Traceback (most recent call last):\n  File "run.py", line 3, in <module>',
    "ValueError: substring not found",
    '{"error": {"message": "You exceeded your current quota"}}',
    "Something went wrong. Please try again later.",
    "ConnectionError(MaxRetryError('connection refused'))",
    "Rate limit reached for requests",
)
HOLLOW = (
    "N/A",
    "None.",
    "TODO",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "Insert description here",
    "A description of {label} with red fins.",
    "Goldfish.",
    "The goldfish is a type of animal.",
    "A goldfish is a kind of pet that is popular around the world.",
)
CHATTY = (
    "Sure! Goldfish have a plump, orange body.",
    "Here is a description: goldfish have a plump, orange body.",
    "Goldfish have a plump, orange body. Let me know if you need more.",
    "Could you clarify which goldfish you mean? Most are orange.",
)
CUT = (
    "Goldfish have a plump, rounded body with large",  # only flagged: it might be whole
    "Goldfish have a plump, rounded body with large scales,",
    "Goldfish have a plump, rounded body with large scales and a",
    "Goldfish have a plump, rounded body (with large scales.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_refused(text):
    assert problems("refusal", "goldfish", text)


@pytest.mark.parametrize("text", ERRORS)
def test_an_error_message_is_no_description(text):
    assert problems("error_text", "goldfish", text)


@pytest.mark.parametrize("text", ["I'M SORRY", "I'm ſorry"])  # an old s, and no other letter of it
def test_capitals_and_odd_letters_hide_no_refusal_and_are_quoted_as_they_are(text):
    (problem,) = problems("refusal", "goldfish", f"{text}, BUT NO.")
    assert problem.startswith(f'refusal: "{text}"')


def test_a_refusal_or_an_error_in_plain_text_is_seen_where_json_was_asked_for():
    rules = [{"rule": "refusal"}, {"rule": "error_text"}]
    assert check(rules, answer("goldfish", raw=REFUSALS[0])).problems[0].startswith("refusal: ")
    assert check(rules, answer("goldfish", raw=ERRORS[0])).problems[0].startswith("error_text: ")


@pytest.mark.parametrize("text", HOLLOW)
def test_a_phrase_without_anything_to_see_is_a_placeholder(text):
    assert problems("placeholder", "goldfish", text)


def test_what_the_label_itself_holds_is_no_placeholder():
    label = "goldfish {{ 7*7 }}"
    assert not problems("placeholder", label, f"A {label} has orange scales and red fins.")
    assert problems("placeholder", label, f"A {label} has {{colour}} scales and red fins.")


@pytest.mark.parametrize("text", CHATTY)
def test_talk_to_the_reader_is_refused(text):
    assert problems("chatter", "goldfish", text)


def test_a_sentence_that_stops_in_the_middle_is_refused_and_a_missing_full_stop_flagged():
    flag_only, *cut = CUT
    assert check([{"rule": "cut_off"}], answer("goldfish", flag_only)).flags
    assert not problems("cut_off", "goldfish", flag_only)
    assert all(problems("cut_off", "goldfish", text) for text in cut)


@pytest.mark.parametrize(
    "text",
    [
        "A Pacific loon cannot walk well on its short, red legs.",
        "An error coin shows a doubled, round rim of silver metal.",
        "An hourglass has two glass bulbs and often serves as a timer.",
        "A speed limit sign is a round, white plate with a red rim and black digits.",
        "A sundial has a flat plate; the shadow of its straight rod tells the time.",
    ],
)
def test_ordinary_sentences_with_suspicious_words_pass(text):
    label = text.split()[1]
    assert check(DEFAULT_RULES, answer(label, text)).problems == ()


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\u202e", "\u200b", "\ufffd", "\ud800"])
def test_characters_that_do_not_print_are_named_and_never_echoed(character):
    text = f"Goldfish have a plump, {character}orange body."
    (problem,) = problems("control", "goldfish", text)
    assert f"U+{ord(character):04X}" in problem
    everything = check(DEFAULT_RULES, answer("goldfish", character * 3 + "N/A" + character))
    assert not any(character in found for found in everything.problems)


def test_line_breaks_and_accents_are_plain_text():
    assert not problems("control", "goldfish", "Béchamel is white,\r\n\tsmooth and thick — 👍.")


@pytest.mark.parametrize(
    "text",
    [
        "Der Goldfisch hat einen rundlichen Körper mit großen Schuppen und gegabeltem Schwanz.",
        "Le poisson rouge a un corps rond et dodu, de grandes écailles et une queue fourchue.",
        "El pez dorado tiene un cuerpo redondeado, escamas grandes y una cola bifurcada.",
        "Золотая рыбка имеет округлое тело и раздвоенный хвост.",
        "金魚有圓潤的身體和分叉的尾巴。",
    ],
)
def test_another_language_is_refused(text):
    assert problems("language", "goldfish", text)


def test_a_foreign_name_in_an_english_sentence_is_english():
    text = "Takoyaki (たこ焼き) is a round, brown ball of batter with a crisp crust."
    assert not problems("language", "takoyaki", text, options={"language": "en"})


def test_a_terse_list_of_attributes_is_english():
    text = "Goldfish: round orange body, forked tail, large scales, bulging eyes, short fins."
    assert check(DEFAULT_RULES, answer("goldfish", text)) == Verdict()


def test_banned_words_are_whole_words_in_any_case():
    options = {"words": ["Beautiful", "type of"]}
    assert not problems("banned_words", "goldfish", "Beautifully orange.", options=options)
    found = problems("banned_words", "goldfish", "A BEAUTIFUL type-of fish.", options=options)
    assert found == (
        'banned_words: do not use "Beautiful"',
        'banned_words: do not use "type of"',
    )


def test_the_same_text_for_two_labels_is_refused_whatever_its_case_and_punctuation():
    taken = dict.fromkeys(
        accepted_keys("crow", "description", ["It is a sleek, black bird."]), "crow"
    )
    (problem,) = problems("duplicate", "raven", "it is a sleek black BIRD", others=taken)
    assert problem == 'duplicate: the text is the same as the one of "crow"'
    assert not problems("duplicate", "crow", "It is a sleek, black bird.", others=taken)


def test_the_same_text_under_another_name_is_flagged():
    text = "The fish crow has a sleek, black plumage and a thick bill."
    taken = dict.fromkeys(accepted_keys("fish crow", "description", [text]), "fish crow")
    twin = "The ravens has a sleek, black plumage and a thick bill."
    verdict = check([{"rule": "duplicate"}], answer("raven", twin, others=taken))
    assert verdict.problems == ()
    assert verdict.flags == ('duplicate: but for the name, the text is the one of "fish crow"',)


def test_a_sentence_said_twice_in_one_answer_is_refused():
    twice = ("A red fish.", "a red fish")
    assert problems("duplicate", "goldfish", *twice, kind="sentences")


def test_attribute_values_may_repeat_between_labels_but_not_all_of_them():
    red = ("red", "round", "small")
    taken = dict.fromkeys(accepted_keys("apple", "attributes", red), "apple")
    assert not problems("duplicate", "cherry", "red", "round", kind="attributes", others=taken)
    assert problems("duplicate", "cherry", *red, kind="attributes", others=taken)


def test_short_attribute_values_pass_the_default_rules():
    verdict = check(DEFAULT_RULES, answer("apple", "red", "round", "none", kind="attributes"))
    assert verdict.problems == ()
    assert verdict.flags == ('placeholder: the value "none" is a placeholder',)
    hollow = check(DEFAULT_RULES, answer("apple", "n/a", "unknown", kind="attributes"))
    assert hollow.problems


def test_a_text_about_another_label_names_both():
    others = {label_key("brown bear"): "brown bear", label_key("ice bear"): "ice bear"}
    (problem,) = problems("wrong_label", "zebra", "Brown bears have shaggy fur.", others=others)
    assert problem == 'wrong_label: the text is about "brown bear", not "zebra"'
    assert not problems("wrong_label", "ice bear", "Ice bears are white.", others=others)
    for text in ("An ice bear, unlike a brown bear, is white.", "Bears are white."):
        assert not problems("wrong_label", "ice bear", text, others=others)


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("goose", "Geese have a plump body."),
        ("gasmask", "A gas mask covers the face."),
        ("ping-pong ball", "Ping pong balls are white."),
        ("Brewer Blackbird", "The Brewer's blackbird is black."),
        ("caldron", "A cauldron is a black pot."),
        ("hippopotamus", "Hippos have a barrel-shaped body."),
        ("creme brulee", "Crème brûlée is a custard."),
    ],
)
def test_plurals_and_spellings_name_the_label(label, text):
    assert check([{"rule": "label_missing"}], answer(label, text)).flags == ()


def test_a_text_without_its_label_is_flagged_or_refused_as_the_prompt_says():
    text = "A large yellow vehicle with windows."
    assert check([{"rule": "label_missing"}], answer("school bus", text)).flags
    options = {"verdict": "problem"}
    assert problems("label_missing", "school bus", text, options=options)


def test_a_long_text_is_flagged_and_kept():
    text = "Goldfish have " + "large, orange, round scales, " * 12 + "and fins."
    verdict = check(DEFAULT_RULES, answer("goldfish", text))
    assert verdict.problems == ()
    assert verdict.flags[0].startswith("length: about ")
    assert not check([{"rule": "length", "max_tokens": 256}], answer("goldfish", text)).flags


SCHEMA = {
    "type": "object",
    "properties": {"description": {"type": "string", "maxLength": 20}},
    "required": ["description"],
    "additionalProperties": False,
}


def test_the_schema_says_where_the_reply_is_wrong():
    options = {"schema": SCHEMA}
    assert "not a JSON object" in problems("schema", options=options)[0]
    assert not problems("schema", parsed={"description": "red"}, options=options)
    (problem,) = problems("schema", parsed={"description": 3}, options=options)
    assert problem == "schema: at description: 3 is not of type 'string'"
    (problem,) = problems("schema", parsed={}, options=options)
    assert problem == "schema: at the object: 'description' is a required property"


def test_no_pattern_in_a_schema_takes_for_ever():
    schema = {"properties": {"description": {"pattern": "^(a+)+$"}}}
    options = {"schema": schema}
    assert not problems("schema", parsed={"description": "a" * 40}, options=options)
    (problem,) = problems("schema", parsed={"description": "a" * 40 + "!"}, options=options)
    assert problem.startswith("schema: at description: 'aaa") and "does not match" in problem


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"rule": "nonsense"}, 'Unknown rule "nonsense"'),
        ({"name": "empty"}, "give its name"),
        ("empty", "give its name"),
        ({"rule": "empty", "strict": True}, 'Rule empty has no option "strict"'),
        ({"rule": "length", "max_tokens": "77"}, "Rule length, option max_tokens"),
        ({"rule": "length", "max_tokens": True}, "Rule length, option max_tokens"),
        ({"rule": "length", "max_tokens": 0}, "Rule length, option max_tokens"),
        ({"rule": "language", "language": "tlh"}, "Rule language, option language"),
        ({"rule": "label_missing", "verdict": "maybe"}, "Rule label_missing, option verdict"),
        ({"rule": "banned_words"}, 'Rule banned_words needs the option "words"'),
        ({"rule": "banned_words", "words": []}, "Rule banned_words, option words"),
        ({"rule": "banned_words", "words": ["…"]}, "Rule banned_words, option words"),
        ({"rule": "schema"}, 'Rule schema needs the option "schema"'),
        ({"rule": "schema", "schema": {"type": "text"}}, "not a valid JSON schema"),
        ({"rule": "schema", "schema": {"$ref": "#"}}, "unresolvable or circular"),
        (
            {"rule": "schema", "schema": {"$ref": "http://127.0.0.1/s.json"}},
            "unresolvable or circular",
        ),
    ],
)
def test_a_rule_that_cannot_work_is_named_in_one_line(rule, message):
    with pytest.raises(InvalidInput) as error:
        check_rules([{"rule": "empty"}, rule])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_default_rules_are_rules_and_every_rule_has_a_docstring():
    check_rules(DEFAULT_RULES)
    assert {rule["rule"] for rule in DEFAULT_RULES} == set(RULES) - {"schema", "banned_words"}
    assert all(rule.__doc__ for rule in RULES.values())


any_text = st.text(st.characters(), max_size=200)  # lone surrogates included
EVERY_RULE = [
    {"rule": "schema", "schema": SCHEMA},
    {"rule": "banned_words", "words": ["red", "type of"]},
    *DEFAULT_RULES,
]


@given(
    label=any_text,
    texts=st.lists(any_text, max_size=3),
    kind=st.sampled_from(("description", "attributes", "sentences")),
    raw=any_text,
)
def test_no_text_whatever_makes_a_rule_fail(label, texts, kind, raw):
    others = dict.fromkeys(accepted_keys("another", kind, texts), "another")
    verdict = check(EVERY_RULE, answer(label, *texts, kind=kind, others=others, raw=raw))
    for found in verdict.problems + verdict.flags:
        assert found.split(":")[0] in RULES
        assert "\n" not in found
        assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in found)


@pytest.mark.parametrize(
    "piece", [",", "\n", "{{", "( ", "i ", "the ", "error ", "…", "as an ", "é"]
)
def test_a_reply_of_100_000_characters_is_judged_at_once(piece):
    text = piece * (100_000 // len(piece)) + "x"
    start = time.process_time()
    check(EVERY_RULE, answer("goldfish", text, others={"label:zebra": "zebra"}))
    assert time.process_time() - start < 5


@given(any_text)
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(any_text)
def test_case_and_spacing_do_not_tell_two_texts_apart(text):
    assert normalise(f"  {text}\n.") == normalise(text)
