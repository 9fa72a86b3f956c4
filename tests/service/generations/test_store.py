"""What several processes agree on in the database: each store here stands for one process."""

import asyncio
from datetime import timedelta

import pytest
from sqlmodel import select

from enrich_service.core.storage.database import reading, utcnow, writing
from enrich_service.generations.models import (
    Claim,
    Generation,
    GenerationFields,
    GenerationSource,
    GenerationStatus,
    Run,
)
from enrich_service.generations.store import GenerationStore
from enrich_service.labels.models import LabelSet

DUCK = "It has slate-blue plumage, chestnut flanks and bold white stripes on its head."


def new_store(engine) -> GenerationStore:
    return GenerationStore(engine, lambda: 1)


def test_a_claim_that_one_caller_ends_and_another_takes_at_once_is_kept(engine):
    async def check():
        store, other = new_store(engine), new_store(engine)
        await store.claim(["teal"])

        async def end():
            await store.claim(["mallard"])
            store.release("teal")

        await asyncio.gather(end(), store.claim(["teal"]))  # both in one transaction
        assert store.has_claimed("teal")
        await store.claim(["gadwall"])  # deletes the rows of claims that have ended
        assert (await other.claim(["teal"])).claimed_by_others == {"teal"}
        await store.aclose()
        await other.aclose()

    asyncio.run(check())


def test_claims_of_processes_that_were_killed_long_ago_are_deleted(engine):
    now = utcnow()
    with writing(engine) as session:
        for key, age in (("old", timedelta(days=2)), ("new", timedelta(minutes=1))):
            session.add(Claim(dedupe_key=key, owner="killed", expires_at=now - age))

    async def work():
        store = new_store(engine)
        await store.claim(["teal"])
        await store.aclose()

    asyncio.run(work())
    with reading(engine) as session:
        assert session.exec(select(Claim.dedupe_key)).all() == ["new"]


@pytest.fixture
def run_id(engine):
    with writing(engine) as session:
        label_set = LabelSet(name="ducks")
        session.add(label_set)
        session.flush()
        asked = {"prompt_version_id": 1, "model": "small", "parameters": {}}
        run = Run(label_set_id=label_set.id, total=1, **asked)
        session.add(run)
        session.flush()
        return run.id


def generation(label, status, **fields) -> GenerationFields:
    return GenerationFields(
        source=GenerationSource.MODEL,
        status=status,
        kind="description",
        label_name=label,
        prompt_version_id=1,
        dedupe_key=label,
        parsed={"description": DUCK},
        **fields,
    )


def test_an_answer_with_the_text_of_another_label_is_stored_though_its_caller_is_gone(
    engine, run_id
):
    accepted = generation("harlequin duck", GenerationStatus.ACCEPTED)
    paid = {"run_id": run_id, "cost_usd": 0.5, "prompt_tokens": 7}
    same_text = generation("surf scoter", GenerationStatus.ACCEPTED, **paid)
    problems = ['duplicate: the text is the same as the one of "harlequin duck"']
    refused = generation("surf scoter", GenerationStatus.RETRIED, problems=problems, **paid)

    async def work():
        store, other = new_store(engine), new_store(engine)
        known, known_to_other = await store.accepted_texts(1), await other.accepted_texts(1)
        await other.add(accepted, accepted_texts=known_to_other)
        adding = asyncio.create_task(
            store.add(same_text, accepted_texts=known, rebuild=lambda: refused)
        )
        await asyncio.sleep(0)
        adding.cancel()
        await store.aclose()
        await other.aclose()

    asyncio.run(work())
    with reading(engine) as session:
        run = session.get_one(Run, run_id)
        assert (run.cost_usd, run.prompt_tokens, run.accepted) == (0.5, 7, 0)
        rows = session.exec(select(Generation.label_name, Generation.status)).all()
        assert rows == [("harlequin duck", "accepted"), ("surf scoter", "retried")]
