"""The Python client, on the whole way from names to a job, against a running service."""

import pytest

from contract import JobCreate, JobState, TrainConfig
from enrich_service.client import Client, ClientError
from enrich_service.core.rest.caller import Scope
from enrich_service.generations.models import ReviewAction, RunState
from enrich_service.generations.schemas import LabelTextIn, TextIn
from enrich_service.keys.schemas import KeyCreate
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts.schemas import AliasPut, AliasRollback, PromptCreate, VersionCreate
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource
from enrich_service.runs.schemas import DescribeRequest, NamedLabel, RunCreate
from enrich_service.students.schemas import (
    StudentAliasPut,
    StudentAliasRollback,
    StudentRegister,
)
from enrich_service.trials.schemas import TrialRequest
from tests.llm_server import LlmServer
from tests.service.llm_fixtures import connect, model  # noqa: F401 - fixtures
from tests.service.web.worker import Worker, classifier_zip

STANDARD = ReleaseSource(prompt="standard", version=1)


@pytest.fixture
def http(connect):  # noqa: F811
    return connect()


@pytest.fixture
def client(http):
    with Client(str(http.base_url)) as client:
        yield client


def test_the_way_from_names_to_a_job_is_a_dozen_lines(client):
    made = client.create_label_set("ducks", [LabelIn(key="n1", name="teal"), "mallard"])
    assert (made.labels, client.label_set("ducks")) == (2, made)
    labels = list(client.labels("ducks"))
    assert [one.key for one in labels] == ["n1", "mallard"]
    client.set_confusable("ducks", {"n1": ["mallard"]})
    body = RunCreate(label_set="ducks", prompt="standard")
    assert client.estimate_run(body).new_requests == 2
    seen = list(client.follow_run(client.start_run(body).id, every=0.05))
    assert (seen[-1].state, seen[-1].accepted) == (RunState.SUCCEEDED, 2)
    assert client.wait_for_run(seen[-1].id) == client.runs(label_set="ducks")[0] == seen[-1]

    texts = {one.label: one for one in client.generations(label="teal", limit=1)}
    edit = client.edit(texts["teal"].id, TextIn(text="The teal is small.", author="ada"))
    assert (edit.parent_id, client.generation(edit.id)) == (texts["teal"].id, edit)
    own = client.write_text(labels[1].id, LabelTextIn(text="The mallard has a green head."))
    client.review([edit.id, own.id], ReviewAction.APPROVE, author="eve")
    assert [one.author for one in client.reviews(edit.id)] == ["eve"]
    assert len(list(client.generations(limit=1))) == 4  # pages lead through all of them

    wanted = ReleaseCreate(label_set="ducks", name="r1", sources=[STANDARD], approved_only=True)
    view = client.create_release(wanted)
    release = client.release(view.id)
    assert release.labels[0].description == "The teal is small."
    there = client.import_release(release, name="r2")
    assert (there.hash, len(client.releases(label_set="ducks"))) == (view.hash, 2)
    models = ReleaseCreate(label_set="ducks", name="r3", sources=[STANDARD], allow_missing=True)
    assert client.compare_releases(view.id, client.create_release(models).id).before == view

    config = TrainConfig(data="/data", teacher="hf-hub:a/b")
    job = client.create_job(JobCreate(release_id=view.id, config=config))
    assert client.job(job.id).state is JobState.QUEUED
    client.cancel_job(job.id)
    assert client.retry_job(job.id).state is JobState.QUEUED
    client.cancel_job(job.id)
    assert client.wait_for_job(job.id).state is client.jobs()[0].state is JobState.CANCELLED
    with pytest.raises(ClientError, match="no artifact"):
        client.report(job.id)


def test_a_student_goes_from_a_job_to_an_alias_and_back(client, http):
    client.create_label_set("ducks", ["mallard", "teal"])
    wanted = ReleaseCreate(label_set="ducks", name="r", allow_missing=True)
    release = client.create_release(wanted).id
    config = TrainConfig(data="/data", teacher="hf-hub:a/b")
    jobs = [client.create_job(JobCreate(release_id=release, config=config)).id for _ in range(2)]
    for _ in jobs:
        Worker(http).finish(unseen=10.0)
    made = [client.register_student(StudentRegister(name="ducks", job_id=job)) for job in jobs]
    assert client.student_versions("ducks") == made[::-1]
    assert client.student_version("ducks", 1) == made[0]
    assert client.student_classifier("ducks", 2) == classifier_zip(jobs[1])
    for version in (1, 2):
        move = StudentAliasPut(version=version, reason="newer", author="ada")
        moved = client.move_student_alias("ducks", "production", move)
    assert client.student_alias("ducks", "production") == moved
    assert client.student("ducks").aliases == client.students()[0].aliases == [moved]
    back = StudentAliasRollback(reason="slower")
    assert client.roll_back_student_alias("ducks", "production", back).version == 1
    moves = client.student_alias_moves("ducks", "production")
    assert [move.reason for move in moves] == ["slower", "newer", "newer"]


def test_prompts_are_made_tried_and_compared(client):
    content = {
        "user": 'The class: {"name": {{ label | tojson }}}.',
        "output_schema": {
            "type": "object",
            "properties": {"description": {"type": "string"}},
            "required": ["description"],
        },
    }
    client.create_prompt(PromptCreate(name="mine", kind="description", tags=["own"], **content))
    assert [one.name for one in client.prompts(tag="own")] == ["mine"]
    trial = client.try_prompt(TrialRequest(kind="description", labels=["teal"], **content))
    assert trial.labels[0].candidate.text
    added = client.add_version("mine", VersionCreate(system="Be brief.", **content))
    client.move_alias("mine", "production", AliasPut(version=added.number))
    assert client.version("mine", "production") == client.version("mine", 2) == added
    assert client.prompt("mine").latest == 2
    request = DescribeRequest(labels=["teal", NamedLabel(name="rail", context="a bird")])
    assert [one.label for one in client.describe(request)] == ["teal", "rail"]
    client.create_label_set("one", ["teal"])
    found = client.compare("one", "mine@1", "visual-description@1", limit=1)
    assert (found.a.missing, found.b.accepted) == (1, 1)
    client.create_label_set("unused", ["teal"])
    client.delete_label_set("unused")
    assert [one.name for one in client.label_sets()] == ["one"]


def test_prompts_are_tagged_archived_and_rolled_back(client):
    content = {"output_schema": {"type": "object", "properties": {"description": {}}}}
    first = PromptCreate(name="mine", kind="description", user="Describe {{ label }}.", **content)
    client.create_prompt(first)
    client.add_version("mine", VersionCreate(user="Describe {{ label }} briefly.", **content))
    assert [one.number for one in client.versions("mine")] == [2, 1]
    (changed,) = client.compare_versions("mine", 1, 2, context=0).changed
    assert changed.field == "user"

    client.move_alias("mine", "production", AliasPut(version=1))
    client.move_alias("mine", "production", AliasPut(version=2))
    assert client.roll_back_alias("mine", "production").version == 1
    client.move_alias("mine", "production", AliasPut(version=2, protected=True))
    sure = AliasRollback(reason="more refusals", author="ada", confirm=True)
    assert client.roll_back_alias("mine", "production", sure).version == 1
    moves = client.alias_moves("mine", "production")
    assert (len(moves), moves[0].reason, moves[0].author) == (5, "more refusals", "ada")

    assert client.tag_prompt("mine", ["own", "short"]).tags == ["own", "short"]
    assert client.archive_prompt("mine").archived_at
    assert client.prompts(tag="own") == []
    assert [one.name for one in client.prompts(tag="own", archived=True)] == ["mine"]
    assert client.unarchive_prompt("mine").archived_at is None


def test_files_go_in_and_come_back_as_they_were(client):
    made = client.upload_label_set("up", b"key,name,context\nn1,common teal,\nn2,marbled teal,\n")
    assert (made.labels, client.label_set("up")) == (2, made)
    assert client.guess_confusable("up").confusable == {"n1": ["n2"], "n2": ["n1"]}
    assert [one.key for one in client.labels("up")] == ["n1", "n2"]
    assert client.labels_csv("up").splitlines()[1] == b"n1,common teal,"
    assert client.confusable_csv("up").splitlines() == [b"key,confusable", b"n1,n2", b"n2,n1"]
    assert client.reviews_csv(label_set="up").splitlines()[1:] == []

    names, texts = b"n1 1 mallard\nn2 2 smew\n", b"A green head.\nA white crest.\n"
    assert client.import_pairs("bare", names).label_sets == ["bare"]
    taken = client.import_pairs("pairs", names, texts, author="ada", check_texts=False)
    assert (taken.generations, taken.rejected) == (2, 0)
    one = client.create_release(ReleaseCreate(label_set="pairs", name="p1")).id
    assert (client.label2text(one), client.descriptions(one)) == (names, texts)
    again = client.import_release_csv(client.release_csv(one), name="p2", label_set="pairs")
    assert client.compare_releases(one, again.id).differing == 0
    assert client.manifest(one).texts == {"description by import": 2}

    heads, crests = {"gadwall": ["a grey head"]}, {"gadwall": ["The gadwall has no crest."]}
    client.import_lists(heads, label_set="lists", kind="attributes")
    client.import_lists(crests, label_set="lists", kind="sentences", check_texts=False)
    both = client.create_release(ReleaseCreate(label_set="lists", name="l1")).id
    assert (client.descriptors(both), client.sentences(both)) == (heads, crests)

    rows = client.generations_csv(label_set="lists")
    assert client.import_generations_csv(rows).existing == 2
    assert len(client.export_all(label_set="lists")) < len(client.export_all())
    assert client.import_all(client.export_all()).generations == 0


def test_a_service_with_keys_is_asked_with_one(connect):  # noqa: F811
    url = str(connect().base_url)
    with Client(url) as anybody:
        root = anybody.create_key(KeyCreate(name="root", scope=Scope.ADMIN))
        with pytest.raises(ClientError, match="needs an API key") as told:
            anybody.keys()
        assert told.value.status == 401
    with Client(url, key=root.key) as admin:
        ann = admin.create_key(KeyCreate(name="ann"))
        listed = admin.keys()
        assert [one.name for one in listed] == ["ann", "root"]
        with_password = url.replace("://", f"://any:{ann.key}@")
        with Client(with_password) as client:
            client.create_label_set("ducks", ["teal"])
        with Client(with_password, key=root.key) as client:  # the key wins over the password
            assert client.keys()[0].last_used_at
        assert [one.action for one in admin.audit_log(key_id=ann.id)] == ["create_label_set"]
        assert admin.revoke_key(ann.id).revoked_at
        newest = admin.audit_log()[0]
        assert (newest.who, newest.action) == ("root", "revoke_key")
        assert newest not in admin.audit_log(before=newest.id)
        with Client(with_password) as client, pytest.raises(ClientError) as told:
            client.label_sets()
        assert told.value.status == 401 and ann.key not in told.value.detail


def test_a_run_is_paused_resumed_cancelled_and_retried(client, model):  # noqa: F811
    model.latency = 0.2
    client.create_label_set("many", [f"label {n}" for n in range(30)])
    run = client.start_run(RunCreate(label_set="many", concurrency=1))
    assert client.pause_run(run.id).state is RunState.PAUSED
    assert client.wait_for_run(run.id).state is RunState.PAUSED
    assert client.resume_run(run.id).state in (RunState.QUEUED, RunState.RUNNING)
    assert client.cancel_run(run.id).state is RunState.CANCELLED
    model.latency = 0.0
    client.retry_run(run.id)
    assert client.wait_for_run(run.id, every=0.05).accepted == 30


def test_a_refusal_says_what_the_service_says(client):
    with pytest.raises(ClientError, match="no label set 'nix'") as told:
        client.label_set("nix")
    assert told.value.status == 404
    with pytest.raises(ClientError, match="at least one label") as told:
        client.create_label_set("empty", [])
    assert told.value.status == 422


def test_a_service_that_is_not_there_is_named():
    with LlmServer() as gone:
        url = gone.url
    with Client(url) as client, pytest.raises(ClientError, match="does not answer") as told:
        client.prompts()
    assert told.value.status is None
    assert url in told.value.detail
    assert "\n" not in told.value.detail


def test_something_else_that_answers_is_told_with_its_status():
    with LlmServer() as other, Client(other.url) as client:
        with pytest.raises(ClientError) as told:
            client.prompts()
        assert (told.value.status, told.value.detail) == (404, "Not Found")


def test_a_password_in_the_address_is_never_shown():
    with LlmServer() as gone:
        url = gone.url
    with (
        Client(url.replace("://", "://any:planted@")) as client,
        pytest.raises(ClientError, match="does not answer") as told,
    ):
        client.prompts()
    assert "planted" not in told.value.detail
    assert url.replace("://", "://***@") in told.value.detail


@pytest.mark.parametrize(
    "url", ["any:planted@host", "ftp://any:planted@host", "http://any:planted/1@host", "host:80"]
)
def test_what_is_no_address_is_refused_at_once_and_not_shown(url):
    with pytest.raises(ClientError, match=r"must be like http://127\.0\.0\.1:8000$"):
        Client(url)


@pytest.mark.parametrize("key", ["planted\n", "plänted", "pla nted"])
def test_a_key_that_cannot_be_sent_is_not_shown(key):
    with pytest.raises(ClientError, match="contains invalid characters") as told:
        Client("http://127.0.0.1:1", key=key)
    assert key not in told.value.detail
