import pytest
from sqlalchemy import insert

from contract import Release, ReleaseLabel, TextSource, release_hash
from enrich_service.core.errors import Conflict, NotFound
from enrich_service.core.storage.database import reading, writing
from enrich_service.generations import reviews
from enrich_service.generations.edits import edit_generation, write_text
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    ReviewAction,
)
from enrich_service.generations.schemas import LabelTextIn, TextIn
from enrich_service.labels import service as labels
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompts
from enrich_service.prompts.schemas import PromptCreate, VersionCreate
from enrich_service.releases import service as releases
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource

MODEL, PERSON, IMPORT = GenerationSource.MODEL, GenerationSource.PERSON, GenerationSource.IMPORT


class World:
    """Two ducks, a prompt of each kind with two versions, and a way to add texts."""

    def __init__(self, session):
        self.session = session
        ducks = labels.create(
            session, "ducks", [LabelIn(name="mallard", context="a bird"), LabelIn(name="teal")]
        )
        self.ids = {label.name: label.id for label in labels.labels_of(session, ducks)}
        self.contexts = {"mallard": "a bird", "teal": None}
        for kind in ("description", "attributes", "sentences", "captions", "look_alikes"):
            prompt, _ = prompts.create(
                session,
                PromptCreate(
                    name=f"my-{kind}", kind=kind, user="1", output_schema={"type": "object"}
                ),
            )
            prompts.create_version(
                session, prompt, VersionCreate(user="2", output_schema={"type": "object"})
            )

    def says(self, name, parsed, *, source=MODEL, version=1, kind="description", **more):
        by_prompt = source is MODEL or source is GenerationSource.REPLAY
        row = Generation(
            source=source,
            status=more.pop("status", GenerationStatus.ACCEPTED),
            kind=kind,
            label_id=more.pop("label_id", self.ids.get(name)),
            label_name=name,
            label_context=more.pop("label_context", self.contexts.get(name)),
            prompt_version_id=(
                prompts.resolve(self.session, f"my-{kind}", version=version).id
                if by_prompt
                else None
            ),
            parsed=parsed if isinstance(parsed, dict) else {kind: parsed},
            **more,
        )
        self.session.add(row)
        self.session.flush()
        return row.id

    def release(self, name="r", sources=("description@1",), **more):
        row, new = releases.create(
            self.session,
            ReleaseCreate(
                label_set="ducks",
                name=name,
                sources=[
                    ReleaseSource(prompt=f"my-{one.split('@')[0]}", version=int(one.split("@")[1]))
                    for one in sources
                ],
                **more,
            ),
        )
        return releases.parsed(row), new

    def texts(self, *args, **more):
        release, _ = self.release(*args, **more)
        return [label.description for label in release.labels]


@pytest.fixture
def world(engine):
    with writing(engine) as session:
        yield World(session)


def test_the_newest_accepted_text_of_the_version_is_taken(world):
    world.says("mallard", "old")
    world.says("mallard", "new", sample_index=1)
    world.says("mallard", "other version", version=2)
    world.says("mallard", "bad", status=GenerationStatus.REJECTED)
    world.says("mallard", "tried", status=GenerationStatus.RETRIED)
    world.says("teal", "teal")
    assert world.texts() == ["new", "teal"]
    assert world.texts("r2", ["description@2"], allow_missing=True) == ["other version", None]


def test_the_text_of_a_person_wins_whenever_it_was_written(world):
    world.says("mallard", "first edit", source=PERSON)
    world.says("mallard", "by hand", source=PERSON)
    world.says("mallard", "by model")
    parent = world.says("teal", "by model")
    world.says("teal", "edited elsewhere", source=IMPORT, parent_id=parent)
    assert world.texts() == ["by hand", "edited elsewhere"]


def test_imported_texts_stand_in_where_the_prompt_has_none(world):
    world.says("mallard", "imported", source=IMPORT)
    world.says("mallard", "by model")
    world.says("teal", "imported", source=IMPORT)
    assert world.texts() == ["by model", "imported"]
    assert world.texts("only-imported", []) == ["imported", "imported"]


def test_a_text_made_for_no_label_set_serves_a_label_of_the_same_name_and_context(world):
    world.says("mallard", "of a bird", label_id=None)
    world.says("teal", "of a colour", label_id=None, label_context="a colour")
    world.says("mallard", "by hand", source=PERSON, label_id=None, label_context="a ship")
    assert world.texts(allow_missing=True) == ["of a bird", None]


def test_an_edit_of_another_label_set_stays_there_and_a_models_text_is_shared(world, engine):
    other = labels.create(
        world.session, "others", [LabelIn(name="teal"), LabelIn(name="mallard", context="a bird")]
    )
    ids = {label.name: label.id for label in labels.labels_of(world.session, other)}
    world.says("teal", "shared", label_id=ids["teal"])
    world.says("teal", "their edit", source=PERSON, label_id=ids["teal"])
    assert world.texts(allow_missing=True) == [None, "shared"]


def test_sentences_are_the_union_of_the_samples_in_their_order(world):
    world.says("mallard", ["c", "d"], kind="sentences", sample_index=1)
    world.says("mallard", ["a", "b", "c"], kind="sentences", sample_index=0)
    world.says("teal", ["x", " ", "x"], kind="sentences")
    release, _ = world.release(sources=["sentences@1"])
    assert [label.sentences for label in release.labels] == [("a", "b", "c", "d"), ("x",)]
    assert len([source for source in release.sources if source.field == "sentences"]) == 3


def test_attributes_keep_only_what_has_values(world):
    world.says(
        "mallard", {"shape": "round", "colours": ["green", ""], "size": ""}, kind="attributes"
    )
    world.says("teal", {"parts": []}, kind="attributes")
    with pytest.raises(Conflict, match="1 of 2 labels have no attributes: 'teal'"):
        world.release(sources=["attributes@1"])
    release, _ = world.release(sources=["attributes@1"], allow_missing=True)
    assert release.labels[0].attributes == {"shape": ("round",), "colours": ("green",)}


def test_several_sources_fill_several_fields_and_the_first_with_a_text_wins(world):
    for name in ("mallard", "teal"):
        world.says(name, f"{name} two", version=2)
        world.says(name, [f"{name} caption"], kind="captions")
    world.says("mallard", "mallard one")
    release, _ = world.release(sources=["description@1", "description@2", "captions@1"])
    assert [label.description for label in release.labels] == ["mallard one", "teal two"]
    assert release.labels[1].captions == ("teal caption",)


def test_labels_without_text_are_named_with_the_remedy(world):
    world.says("teal", "teal")
    with pytest.raises(Conflict, match=r"1 of 2 labels have no description: 'mallard'\. Run"):
        world.release()
    with pytest.raises(Conflict, match="2 of 2 labels have no text"):
        world.release(sources=[])


def test_each_text_says_where_it_came_from(world):
    models = {"requested_model": "small", "resolved_model": "small-2026"}
    made = world.says("mallard", "m", **models, cost_usd=0.25)
    edit = world.says("teal", "t", source=PERSON, author="ada", parent_id=made)
    release, _ = world.release()
    first, second = release.sources
    assert (first.key, first.field, first.generation_id) == ("mallard", "description", made)
    assert (first.source, first.prompt, first.prompt_version) == ("model", "my-description", 1)
    assert (first.requested_model, first.resolved_model) == ("small", "small-2026")
    assert (
        first.prompt_hash
        == prompts.resolve(world.session, "my-description", version=1).content_hash
    )
    assert (second.source, second.author, second.generation_id) == ("person", "ada", edit)
    assert (first.cost_usd, second.cost_usd) == (0.25, None)


def test_the_cost_of_a_text_is_not_part_of_the_hash_and_may_be_missing(world):
    for name in ("mallard", "teal"):
        world.says(name, name, cost_usd=0.25)
    release, _ = world.release()
    imported = [TextSource(key=x.key, field="description", source="import") for x in release.labels]
    document = release.model_copy(update={"sources": tuple(imported)}).model_dump(mode="json")
    for source in document["sources"]:
        del source["cost_usd"]  # as in files of earlier versions
    old = Release.model_validate(document)
    assert old.sources == tuple(imported)
    assert release_hash(old.labels) == release.hash


def test_only_texts_of_one_model_can_be_asked_for(world):
    for model in ("a", "b"):
        for name in ("mallard", "teal"):
            world.says(name, f"{name} by {model}", requested_model=model)
    row, _ = releases.create(
        world.session,
        ReleaseCreate(
            label_set="ducks",
            name="a",
            sources=[ReleaseSource(prompt="my-description", version=1, model="a")],
        ),
    )
    assert [one.description for one in releases.parsed(row).labels] == ["mallard by a", "teal by a"]


def test_look_alikes_are_the_union_of_the_samples_and_change_the_hash(world):
    for name in ("mallard", "teal"):
        world.says(name, f"{name} by model")
    plain, _ = world.release("plain")
    world.says("mallard", ["decoy", "grebe"], kind="look_alikes")
    world.says("mallard", ["grebe", "loon"], kind="look_alikes", sample_index=1)
    sources = ["description@1", "look_alikes@1"]
    release, _ = world.release("with", sources, allow_missing=True)
    assert [one.look_alikes for one in release.labels] == [("decoy", "grebe", "loon"), ()]
    assert {source.field for source in release.sources} == {"description", "look_alikes"}
    assert release.hash != plain.hash
    with pytest.raises(Conflict, match="1 of 2 labels have no look_alikes: 'teal'"):
        world.release("strict", sources)


def test_a_release_without_look_alikes_has_the_hash_that_it_had_before_there_were_any():
    label = ReleaseLabel(key="n0", name="mallard", description="a duck")
    assert release_hash([label]) == (
        "fc15b86f753f43b206e7ffcdbe1305bc4a16da368351a81e7a3f7108778ca52d"
    )


GERMAN = {"language": "German"}


def test_texts_of_two_languages_never_hide_each_other(world):
    for name in ("mallard", "teal"):
        world.says(name, f"{name}, auf Deutsch", variables=GERMAN)
    assert world.texts("only-german") == ["mallard, auf Deutsch", "teal, auf Deutsch"]
    world.says("mallard", "mallard, in English")
    with pytest.raises(Conflict, match=r'\(English, German\): .* "languages": \["English"\]'):
        world.release()
    german, _ = world.release(languages=["german"])
    assert [one.description for one in german.labels] == [
        "mallard, auf Deutsch",
        "teal, auf Deutsch",
    ]
    assert {source.language for source in german.sources} == {"German"}
    with pytest.raises(Conflict, match="1 of 2 labels have no description in English: 'teal'"):
        world.release("english", languages=["English"])
    assert world.texts("both", languages=["English", "German"]) == [
        "mallard, in English",
        "teal, auf Deutsch",
    ]


def test_languages_of_different_fields_are_not_mixed_either(world):
    for name in ("mallard", "teal"):
        world.says(name, f"{name} in English")
        world.says(name, [f"{name}, auf Deutsch"], kind="captions", variables=GERMAN)
    with pytest.raises(Conflict, match="English, German"):
        world.release(sources=["description@1", "captions@1"])


def test_a_persons_text_wins_in_its_own_language_alone(world):
    made = world.says("mallard", "auf Deutsch", variables=GERMAN)
    world.says("mallard", "in English")
    edit = edit_generation(world.session, made, TextIn(text="besser", author="ada"))
    assert edit.variables == GERMAN
    reviews.review(world.session, [edit.id], ReviewAction.LOCK)
    written = write_text(
        world.session,
        world.ids["teal"],
        LabelTextIn(prompt="my-description", text="von Hand", author="ada", language="German"),
    )
    assert written.variables == GERMAN
    assert world.texts("g", languages=["German"]) == ["besser", "von Hand"]
    assert world.texts("e", languages=["English"], allow_missing=True) == ["in English", None]
    with pytest.raises(Conflict, match="locked"):
        edit_generation(world.session, made, TextIn(text="noch"))
    english = write_text(
        world.session,
        world.ids["mallard"],
        LabelTextIn(prompt="my-description", text="by hand"),
    )
    assert english.variables == {}


def test_the_same_texts_have_the_same_hash_under_any_name(world):
    world.says("mallard", "m")
    world.says("teal", "t")
    first, new = world.release("one", message="x")
    assert new
    same, new = world.release("one")
    assert (same.id, new) == (first.id, False)
    other, new = world.release("two")
    assert new
    assert other.id != first.id
    assert other.hash == first.hash == release_hash(first.labels)
    world.says("teal", "t!", source=PERSON)
    with pytest.raises(Conflict, match="choose another name"):
        world.release("one")
    changed, _ = world.release("three")
    assert changed.hash != first.hash
    diff = releases.diff(world.session, first.id, changed.id)
    assert diff.unchanged == 1
    assert [(c.key, c.before, c.after) for c in diff.changed] == [
        ("teal", {"description": "t"}, {"description": "t!"})
    ]


def test_what_does_not_exist_is_named(world):
    with pytest.raises(NotFound, match="label set 'nix'"):
        releases.create(world.session, ReleaseCreate(label_set="nix", name="r"))
    with pytest.raises(NotFound, match="no version 9"):
        world.release(sources=["description@9"])


@pytest.fixture(scope="module")
def frozen(service):
    service.post("/v1/label-sets", json={"name": "set", "labels": [{"name": "mallard"}]})
    body = {"label_set": "set", "name": "bare", "allow_missing": True, "author": "ada"}
    return service.post("/v1/releases", json=body).json()


def test_a_release_is_served_byte_for_byte_with_its_hash_as_etag(service, frozen):
    url = f"/v1/releases/{frozen['id']}"
    first, second = service.get(url), service.get(url)
    assert first.content == second.content
    assert first.headers["etag"] == f'"{frozen["hash"]}"'
    assert Release.model_validate_json(first.content).hash == frozen["hash"]


@pytest.mark.parametrize("tag", ['"{}"', 'W/"{}"', '"x", "{}"', "*"])
def test_who_has_it_already_gets_304_and_no_body(service, frozen, tag):
    headers = {"If-None-Match": tag.format(frozen["hash"])}
    answer = service.get(f"/v1/releases/{frozen['id']}", headers=headers)
    assert (answer.status_code, answer.content) == (304, b"")
    stale = service.get(f"/v1/releases/{frozen['id']}", headers={"If-None-Match": '"old"'})
    assert stale.status_code == 200


@pytest.mark.parametrize("source", [{"prompt": "p"}, {"prompt": "p", "version": 1, "alias": "a"}])
def test_a_source_names_a_version_or_an_alias(service, frozen, source):
    body = {"label_set": "set", "name": "x", "sources": [source]}
    answer = service.post("/v1/releases", json=body)
    assert answer.status_code == 422
    assert "either" in answer.json()["detail"]


def test_a_release_travels_with_its_hash(service, frozen, start_service, tmp_path):
    import httpx

    from enrich_service.core.settings import Settings

    body = service.get(f"/v1/releases/{frozen['id']}").json()
    with httpx.Client(base_url=start_service(Settings(data_dir=tmp_path))) as elsewhere:
        there = elsewhere.post("/v1/releases/import", json=body)
        assert there.status_code == 201
        assert there.json()["hash"] == frozen["hash"]
        assert elsewhere.post("/v1/releases/import", json=body).status_code == 200
        assert elsewhere.get("/v1/label-sets/set").json()["labels"] == 1
        body["labels"][0]["description"] = "changed on the way"
        answer = elsewhere.post("/v1/releases/import", json=body)
        assert answer.status_code == 422
        assert "hash" in answer.json()["detail"]


def test_a_release_of_ten_thousand_labels_is_frozen_whole(engine):
    with writing(engine) as session:
        World(session)
        many = labels.create(session, "many", [LabelIn(name=f"label {n}") for n in range(10_000)])
        version = prompts.resolve(session, "my-description", version=1).id
        rows = [
            {
                "source": MODEL,
                "status": GenerationStatus.ACCEPTED,
                "kind": "description",
                "label_id": label.id,
                "label_name": label.name,
                "prompt_version_id": version,
                "parsed": {"description": f"text {label.name}"},
            }
            for label in labels.labels_of(session, many)
        ]
        session.execute(insert(Generation), rows)
    with writing(engine) as session:
        source = ReleaseSource(prompt="my-description", version=1)
        row, _ = releases.create(
            session, ReleaseCreate(label_set="many", name="many", sources=[source])
        )
    with reading(engine) as session:
        last = releases.parsed(releases.get(session, row.id)).labels[-1]
        assert last.description == "text label 9999"
