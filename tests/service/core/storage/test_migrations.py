import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlmodel import SQLModel, select

from contract import JobCreate, TrainConfig
from enrich_service.core.errors import Unavailable
from enrich_service.core.storage.database import make_engine, reading, writing
from enrich_service.core.storage.migrate import alembic_config
from enrich_service.core.storage.prestart import newest_revision, prestart
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    ReviewAction,
    language_of,
)
from enrich_service.jobs import service as jobs
from enrich_service.labels import service as labels
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompts
from enrich_service.prompts.schemas import AliasPut, PromptCreate
from enrich_service.releases import service as releases
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource


@pytest.fixture
def engine(settings):
    """Of a database that the migrations have made in this test."""
    engine = make_engine(settings.sqlalchemy_url)
    prestart(engine, settings)
    yield engine
    engine.dispose()


def fill(engine):
    """At least one row in each table that people fill."""
    with writing(engine) as session:
        ducks = labels.create(session, "ducks", [LabelIn(name="mallard"), LabelIn(name="teal")])
        prompt, version = prompts.create(
            session,
            PromptCreate(
                name="mine",
                kind="description",
                user="{{ label }}",
                output_schema={"type": "object"},
                tags=["ducks"],
            ),
        )
        prompts.move_alias(session, prompt, "production", AliasPut(version=1, reason="first"))
        for label in labels.labels_of(session, ducks):
            session.add(
                Generation(
                    source=GenerationSource.MODEL,
                    status=GenerationStatus.ACCEPTED,
                    kind="description",
                    label_id=label.id,
                    label_name=label.name,
                    prompt_version_id=version.id,
                    parsed={"description": f"A {label.name} with ünïcode"},
                )
            )
        labels.set_confusable(session, ducks, {"mallard": ["teal"]})
        session.flush()
        reviews.review(session, [1, 2], ReviewAction.LOCK, author="ada")
        release, _ = releases.create(
            session,
            ReleaseCreate(
                label_set="ducks",
                name="r1",
                sources=[ReleaseSource(prompt="mine", version=1)],
            ),
        )
        jobs.create(
            session, JobCreate(release_id=release.id, config=TrainConfig(data="d", teacher="t"))
        )


def counts(engine):
    with engine.connect() as connection:
        return {
            table: connection.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one()
            for table in inspect(engine).get_table_names()
        }


def test_the_migrated_schema_is_that_of_the_models(engine):
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []


def test_the_number_in_the_name_of_the_newest_migration_is_its_revision(engine):
    assert (
        newest_revision() == ScriptDirectory.from_config(alembic_config(engine)).get_current_head()
    )


def test_every_step_down_and_up_again_keeps_the_rows_of_the_tables_that_stay(engine):
    fill(engine)
    before = counts(engine)
    script = ScriptDirectory.from_config(alembic_config(engine))
    steps = [revision.revision for revision in script.walk_revisions()][:-1]  # newest first
    for revision in steps:
        down = script.get_revision(revision).down_revision
        command.downgrade(alembic_config(engine), down)
        after = counts(engine)
        assert all(after[table] == n for table, n in before.items() if table in USERS and n)
    stayed = after.keys()  # the other tables went, with their rows
    command.upgrade(alembic_config(engine), "head")
    assert {table: n for table, n in counts(engine).items() if table in stayed} == {
        table: n for table, n in before.items() if table in stayed
    }
    with reading(engine) as session:
        texts = [generation.parsed for generation in session.exec(select(Generation)).all()]
        assert texts[0] == {"description": "A mallard with ünïcode"}


def test_edits_of_an_older_service_get_the_language_of_what_they_stand_in_for(engine):
    command.downgrade(alembic_config(engine), "0006")
    insert = text(
        "INSERT INTO generation (id, source, status, kind, label_name, parent_id, variables, "
        "sample_index, attempt, calls, parameters, messages, problems, flags, author, created_at) "
        "VALUES (:id, :source, 'accepted', 'description', 'teal', :parent, :variables, "
        "0, 1, 1, '{}', '[]', '[]', '[]', '', '2026-01-02 03:04:05')"
    )
    german = '{"language": "German", "n": 2}'
    rows = [(1, "model", None, german), (2, "model", None, "{}")]
    rows += [(3, "person", 1, "{}"), (4, "person", 3, "{}"), (5, "person", 2, "{}")]
    with writing(engine) as session:
        for id, source, parent, variables in rows:
            values = {"id": id, "source": source, "parent": parent, "variables": variables}
            session.execute(insert, values)
    command.upgrade(alembic_config(engine), "head")
    with reading(engine) as session:
        found = session.exec(select(Generation).order_by(Generation.id)).all()
    assert [language_of(one) for one in found] == ["German", "English"] + ["German"] * 2 + [
        "English"
    ]


USERS = {"label_set", "label", "generation", "release", "job", "job_event"}


def test_going_down_to_nothing_and_up_again_gives_an_empty_service(engine):
    fill(engine)
    command.downgrade(alembic_config(engine), "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    command.upgrade(alembic_config(engine), "head")
    assert counts(engine)["label"] == 0


@pytest.mark.sqlite
def test_a_migration_that_leaves_rows_pointing_nowhere_is_rolled_back(engine):
    fill(engine)
    with engine.connect() as connection:  # what a careless batch migration would leave
        raw = connection.connection.cursor()
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("DELETE FROM label_set")
        raw.execute("PRAGMA foreign_keys = ON")
    before = counts(engine)
    with pytest.raises(RuntimeError, match="point nowhere"):
        command.downgrade(alembic_config(engine), "-1")
    assert counts(engine) == before


@pytest.mark.sqlite
def test_foreign_keys_are_on_after_a_migration(engine):
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1


def test_processes_that_start_together_migrate_once(settings):
    engines = [make_engine(settings.sqlalchemy_url) for _ in range(4)]
    failures = []

    def start(engine):
        try:
            prestart(engine, settings)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    assert failures == []


def test_a_database_of_a_newer_service_is_left_alone(engine, settings):
    with writing(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Unavailable, match="upgrade the service"):
        prestart(engine, settings)


@pytest.mark.sqlite
def test_a_file_that_is_no_database_is_told_in_one_line(settings):
    settings.data_dir.mkdir()
    (settings.data_dir / "enrich.db").write_bytes(b"this is no database, not at all" * 100)
    engine = make_engine(settings.sqlalchemy_url)
    with pytest.raises(Unavailable, match="damaged"):
        prestart(engine, settings)
    engine.dispose()


@pytest.mark.parametrize("place", ["file/data", "/proc/data"])
def test_a_data_folder_that_cannot_be_made_is_told_in_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    from enrich_service.core.settings import Settings

    settings = Settings(data_dir=tmp_path / place)
    engine = make_engine(settings.sqlalchemy_url)
    with pytest.raises(Unavailable, match="data folder"):
        prestart(engine, settings)
    engine.dispose()
