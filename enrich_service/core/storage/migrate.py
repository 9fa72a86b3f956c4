"""Migrations with Alembic, imported only when needed: Alembic is slow to import."""

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine

from enrich_service.core.errors import Unavailable


def alembic_config(engine: Engine) -> Config:
    """Alembic's configuration for `engine`; no .ini file is needed."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


def upgrade(engine: Engine) -> None:
    """Apply the missing migrations.

    Raises Unavailable if the database has a revision that this version does not know.
    """
    try:
        command.upgrade(alembic_config(engine), "head")
    except CommandError as error:
        raise Unavailable(
            f"The database has a revision unknown to this version ({error}): upgrade the service."
        ) from error
