"""How Alembic reaches the database.

Notable: in SQLite a batch migration copies a table and drops the old one, and with foreign keys on
that drop silently deletes or breaks the rows that point at it. So foreign keys go off before BEGIN
(inside a transaction the PRAGMA does nothing), everything runs in one transaction, and
foreign_key_check must find nothing before it commits.
"""

from alembic import context
from sqlalchemy import Engine
from sqlmodel import SQLModel

import enrich_service.core.rest.audit
import enrich_service.generations.models
import enrich_service.jobs.models
import enrich_service.keys.models
import enrich_service.labels.models
import enrich_service.prompts.models
import enrich_service.releases.models
import enrich_service.students.models
import enrich_service.workers.models  # noqa: F401 - the imports fill SQLModel.metadata
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine


def migrate(engine: Engine) -> None:
    """Run the migrations that `context` asks for."""
    sqlite = engine.dialect.name == "sqlite"
    with engine.connect().execution_options(write=True) as connection:
        if sqlite:
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA foreign_keys = OFF")
        context.configure(
            connection=connection,
            target_metadata=SQLModel.metadata,
            render_as_batch=True,
            transactional_ddl=True,
        )
        with context.begin_transaction():
            context.run_migrations()
            if sqlite and (broken := cursor.execute("PRAGMA foreign_key_check").fetchall()):
                raise RuntimeError(f"the migration left rows that point nowhere: {broken[:5]}")
        if sqlite:
            cursor.execute("PRAGMA foreign_keys = ON")


if context.is_offline_mode():
    raise SystemExit("migrations need a database: run them without --sql")

given = context.config.attributes.get("engine")
if given is not None:
    migrate(given)
else:
    own = make_engine(Settings().sqlalchemy_url)
    migrate(own)
    own.dispose()
