import threading

import pytest

from enrich_service.prompts.service import content_hash

BODY = {
    "system": "Describe.",
    "user": "{{ label | tojson }}",
    "output_schema": {"type": "object", "properties": {"description": {"type": "string"}}},
    "model_defaults": {"temperature": 0.2},
    "validators": [{"rule": "refusal"}],
}


@pytest.fixture
def prompt(service, request):
    name = request.node.name.replace("[", ".").replace("]", "")[:100]
    answer = service.post("/v1/prompts", json={"name": name, "kind": "description", **BODY})
    assert answer.status_code == 201, answer.text
    return f"/v1/prompts/{name}"


def test_the_same_content_is_the_same_version(service, prompt):
    again = service.post(f"{prompt}/versions", json=BODY | {"message": "other words"})
    assert (again.status_code, again.json()["number"]) == (200, 1)
    other = service.post(f"{prompt}/versions", json=BODY | {"system": "Describe it."})
    assert (other.status_code, other.json()["number"]) == (201, 2)
    # Back to the content of version 1 is a version of its own: history goes forward.
    back = service.post(f"{prompt}/versions", json=BODY)
    assert back.json()["number"] == 3
    assert back.json()["content_hash"] == service.get(f"{prompt}/versions/1").json()["content_hash"]


@pytest.mark.parametrize(
    "change",
    [
        {"system": "x"},
        {"user": "x"},
        {"output_schema": {"type": "object"}},
        {"model_defaults": {"temperature": 0.3}},
        {"validators": []},
        {"kind": "captions"},
    ],
)
def test_the_hash_covers_all_that_shapes_an_answer(change):
    content = BODY | {"kind": "description"}
    assert content_hash(**content) != content_hash(**content | change)
    assert content_hash(**content) == content_hash(**dict(reversed(content.items())))


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"not": schema}
    return {"type": "object"} | schema


def doubling(parts):
    """A small schema of parts that each refer twice to the next one."""
    twice = {f"p{n}": {"allOf": [{"$ref": f"#/$defs/p{n + 1}"}] * 2} for n in range(parts)}
    defs = twice | {f"p{parts}": {"type": "string"}}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/p0"}}, "$defs": defs}


BAD = [
    ({"user": "{{ label"}, "user template, line 1"),
    ({"user": "{{ labl }}"}, "unknown variable 'labl'"),
    ({"user": ""}, "empty"),
    ({"user": "a\u202eb"}, "bidi control"),
    ({"system": "{% if %}"}, "system template"),
    ({"output_schema": {"type": "strange"}}, "output schema is not valid"),
    ({"output_schema": {"type": "array"}}, "must describe an object"),
    ({"output_schema": {"type": "object", "$ref": "http://x/y"}}, "only #/"),
    ({"output_schema": {"type": "object", "$ref": "#"}}, "a circular $ref: '#'"),
    (
        {"output_schema": {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}},
        "a circular $ref",
    ),
    (
        {"output_schema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}},
        "'#/$defs/b', which does not exist",
    ),
    (
        {"output_schema": {"type": "object", "properties": {"a": {"pattern": "("}}}},
        "output schema is not valid",
    ),
    (
        {"output_schema": {"type": "object", "properties": {"a": {"pattern": "(?=b)"}}}},
        "remove look-around",
    ),
    ({"output_schema": doubling(30)}, "more than 5000 parts"),
    (
        {"output_schema": {"type": "object", "properties": {"a": {"allOf": [{"$ref": "#"}] * 2}}}},
        "'#' within itself more than once",
    ),
    (
        {"validators": [{"rule": "schema", "schema": doubling(30)}]},
        "more than 5000 parts",
    ),
    ({"output_schema": {"type": "object", "patternProperties": {"^a": {}}}}, "patternProperties"),
    ({"user": "{{ label.__class__ }}"}, "attribute access"),
    ({"system": "{{ label['__class__'] }}"}, "Getitem is not allowed"),
    ({"user": "{% for a in range(1000000000) %}x{% endfor %}"}, "range(N) up to 100"),
    ({"user": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"}, "Macro is not allowed"),
    ({"user": "x" * 20_001}, "20001 characters"),
    ({"user": "{{ " + "n + " * 60 + "n }}"}, "nested more than 25 deep"),
    (
        {
            "user": "{% for a in range(100) %}{% for b in range(100) %}"
            "{{ '" + "zyxw" * 4000 + "'|sort|first }}{% endfor %}{% endfor %}"
        },
        "user template takes too much work",
    ),
    ({"output_schema": nested(150)}, "output schema: JSON nested more than 60 deep"),
    ({"validators": [{"rule": "schema", "schema": nested(150)}]}, "validators: JSON nested more"),
    ({"tags": ["a\nb"]}, "control character"),
    ({"kind": "poem"}, "kind"),
    ({"model_defaults": {"api_key": "x"}}, "'api_key' is not a parameter"),
    ({"model_defaults": {"Temp!": 1}}, "not a parameter"),
    ({"model_defaults": {"max_tokens": None}}, "max_tokens is 'null': give a whole number"),
    ({"model_defaults": {"max_completion_tokens": "lots"}}, "give a whole number of tokens"),
    ({"model_defaults": {"max_tokens": 0}}, "give a whole number of tokens"),
    ({"validators": [{"rule": "no-such-rule"}]}, "no-such-rule"),
    ({"validators": [{}]}, "rule"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_cannot_be_a_prompt_is_told_and_not_stored(service, change, message):
    body = {"name": "bad", "kind": "description", **BODY, **change}
    answer = service.post("/v1/prompts", json=body)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert service.get("/v1/prompts/bad").status_code == 404


@pytest.mark.parametrize(
    ("change", "message"), [one for one in BAD if not {"tags", "kind"} & one[0].keys()]
)
def test_what_cannot_be_a_version_leaves_the_prompt_as_it_was(service, change, message):
    service.post("/v1/prompts", json={"name": "stays", "kind": "description", **BODY})
    answer = service.post("/v1/prompts/stays/versions", json=BODY | change)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert service.get("/v1/prompts/stays").json()["latest"] == 1


def test_a_schema_may_refer_to_its_own_parts(service):
    schema = {
        "type": "object",
        "properties": {
            "description": {"$ref": "#/$defs/text"},
            "more": {"$ref": "#"},
            "head": {"$ref": "#/$defs/part"},
            "tail": {"$ref": "#/$defs/part"},
        },
        "$defs": {
            "text": {"type": "string"},
            "part": {"properties": {"of": {"items": {"$ref": "#/$defs/part"}}}},
        },
    }
    body = BODY | {"name": "refers", "kind": "description", "output_schema": schema}
    assert service.post("/v1/prompts", json=body).status_code == 201


def test_an_alias_moves_with_a_log_and_rolls_back(service, prompt):
    service.post(f"{prompt}/versions", json=BODY | {"system": "two"})
    alias = f"{prompt}/aliases/production"
    service.put(alias, json={"version": 1, "reason": "first", "author": "ada"})
    service.put(alias, json={"version": 2, "reason": "better", "author": "ada"})
    service.put(alias, json={"version": 2, "reason": "no move"})
    assert service.get(alias).json()["number"] == 2
    back = service.post(f"{alias}/rollback", json={"author": "bob"})
    assert back.json()["version"] == 1
    moves = service.get(f"{alias}/moves").json()
    assert [(m["from_version"], m["to_version"], m["reason"]) for m in moves] == [
        (2, 1, "rollback"),
        (1, 2, "better"),
        (None, 1, "first"),
    ]
    assert service.get(prompt).json()["aliases"] == [
        {"name": "production", "version": 1, "protected": False}
    ]


def test_a_protected_alias_moves_only_when_confirmed_with_a_reason(service, prompt):
    service.post(f"{prompt}/versions", json=BODY | {"system": "two"})
    alias = f"{prompt}/aliases/production"
    service.put(alias, json={"version": 1, "protected": True})
    for body in (
        {"version": 2},
        {"version": 2, "reason": "because"},
        {"version": 2, "confirm": True},
        {"version": 1, "protected": False},
    ):
        answer = service.put(alias, json=body)
        assert answer.status_code == 409
        assert "protected" in answer.json()["detail"]
    assert service.get(alias).json()["number"] == 1
    moved = service.put(alias, json={"version": 2, "reason": "because", "confirm": True})
    assert moved.json() == {"name": "production", "version": 2, "protected": True}


def test_an_alias_that_was_nowhere_else_cannot_roll_back(service, prompt):
    service.put(f"{prompt}/aliases/a", json={"version": 1})
    assert service.post(f"{prompt}/aliases/a/rollback", json={}).status_code == 409
    assert service.post(f"{prompt}/aliases/b/rollback", json={}).status_code == 404
    assert service.put(f"{prompt}/aliases/a", json={"version": 9}).status_code == 404
    assert service.put(f"{prompt}/aliases/1", json={"version": 1}).status_code == 422


def test_a_diff_shows_only_what_changed(service, prompt):
    change = {"system": "Describe.\nBriefly.", "model_defaults": {"temperature": 0.9}}
    service.post(f"{prompt}/versions", json=BODY | change)
    diff = service.get(f"{prompt}/diff?from=1&to=2").json()
    assert [one["field"] for one in diff["changed"]] == ["system", "model_defaults"]
    assert "+Briefly." in diff["changed"][0]["diff"]
    assert '-  "temperature": 0.2' in diff["changed"][1]["diff"]
    assert service.get(f"{prompt}/diff?from=1&to=1").json()["changed"] == []
    assert service.get(f"{prompt}/diff?from=1&to=7").status_code == 404


def test_an_archived_prompt_is_readable_and_takes_no_new_version(service, prompt):
    name = prompt.rpartition("/")[2]
    service.put(f"{prompt}/archived", json={"archived": True})
    assert name not in [one["name"] for one in service.get("/v1/prompts").json()]
    assert name in [one["name"] for one in service.get("/v1/prompts?archived=true").json()]
    assert service.get(f"{prompt}/versions/1").status_code == 200
    answer = service.post(f"{prompt}/versions", json=BODY | {"system": "new"})
    assert answer.status_code == 409
    service.put(f"{prompt}/archived", json={"archived": False})
    assert service.post(f"{prompt}/versions", json=BODY | {"system": "new"}).status_code == 201


def test_versions_made_at_the_same_moment_get_numbers_of_their_own(service, prompt):
    numbers = []

    def add(n):
        answer = service.post(f"{prompt}/versions", json=BODY | {"system": f"text {n}"})
        numbers.append(answer.json()["number"])

    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(2, 10))


def test_prompts_are_found_by_name_or_summary(service, prompt):
    body = {"name": "zebra", "kind": "captions", "summary": "Stripes 100%", **BODY}
    service.post("/v1/prompts", json=body)
    found = service.get("/v1/prompts", params={"search": "100%"}).json()
    assert [one["name"] for one in found] == ["zebra"]


def test_tags_are_searched_and_changed_and_make_no_version(service, prompt):
    name = prompt.rpartition("/")[2]
    tagged = service.put(f"{prompt}/tags", json={"tags": ["plumage", " birds ", "birds"]})
    assert tagged.json()["tags"] == ["birds", "plumage"]
    assert tagged.json()["latest"] == 1

    def found(**query):
        return [one["name"] for one in service.get("/v1/prompts", params=query).json()]

    assert found(search="pluma") == found(tag="plumage") == [name]
    assert found(tag="pluma") == []
    service.put(f"{prompt}/tags", json={"tags": []})
    assert found(search="plumage") == found(tag="birds") == []
    born = {"name": "born-tagged", "kind": "description", "tags": ["young"], **BODY}
    service.post("/v1/prompts", json=born)
    assert found(tag="young") == ["born-tagged"]


@pytest.mark.parametrize("tags", [[""], ["a\nb"], ["x" * 51], [f"t{n}" for n in range(21)]])
def test_what_cannot_be_a_tag_is_told_and_leaves_the_tags_as_they_were(service, prompt, tags):
    service.put(f"{prompt}/tags", json={"tags": ["kept"]})
    answer = service.put(f"{prompt}/tags", json={"tags": tags})
    assert answer.status_code == 422
    assert "\n" not in answer.json()["detail"]
    assert service.get(prompt).json()["tags"] == ["kept"]


def texts(parts):
    """A column of a row, with what changed in brackets."""
    return parts and "".join(f"[{p['text']}]" if p["changed"] else p["text"] for p in parts)


def test_versions_stand_side_by_side_with_the_changed_words_marked(service, prompt):
    lines = [f"line {n}" for n in range(1, 8)]
    service.post(f"{prompt}/versions", json=BODY | {"system": "\n".join(lines)})
    lines[3] = "line four, at last"
    lines.append("one more")
    service.post(f"{prompt}/versions", json=BODY | {"system": "\n".join(lines)})

    def rows(**query):
        params = {"from": 2, "to": 3, **query}
        (field,) = service.get(f"{prompt}/diff", params=params).json()["changed"]
        return [
            (row["hidden"] or (texts(row["before"]), texts(row["after"]))) for row in field["rows"]
        ]

    changed = ("line [4]", "line [four, at last]")
    assert rows()[2:5] == [("line 3", "line 3"), changed, ("line 5", "line 5")]
    assert rows(context=0) == [3, changed, 3, (None, "[one more]")]
    assert rows(context=1)[:4] == [2, ("line 3", "line 3"), changed, ("line 5", "line 5")]
    (field,) = service.get(f"{prompt}/diff?from=2&to=3").json()["changed"]
    assert [(row["before_line"], row["after_line"]) for row in field["rows"]][-2:] == [
        (7, 7),
        (None, 8),
    ]
    assert "".join(p["text"] for p in field["rows"][3]["after"]) == lines[3]
