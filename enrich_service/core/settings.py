"""Settings, read once from the environment. `enrich settings` lists them, secrets masked."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url

from enrich_service.core.text import without_password

MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """Everything an operator can choose, prefix `ENRICH_`."""

    model_config = SettingsConfigDict(
        env_prefix="ENRICH_", populate_by_name=True, extra="ignore", frozen=True
    )

    data_dir: Annotated[Path, Field(description="Folder of the database and the artifacts")] = Path(
        "enrich-data"
    )
    database_url: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("ENRICH_DATABASE_URL", "DATABASE_URL"),
            description="SQLAlchemy URL; default: enrich.db in the data folder",
        ),
    ] = None
    host: Annotated[str, Field(description="Address that `enrich serve` binds")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port; 0 takes a free one")] = 8000
    allow_remote: Annotated[
        bool,
        Field(description="Before the first API key: let in whoever reaches the service"),
    ] = False
    rate_limit: Annotated[
        float,
        Field(gt=0, description="Requests a second that one API key may make, in each process"),
    ] = 100.0
    cors_origins: Annotated[
        tuple[str, ...],
        Field(description='Other sites whose pages may ask: ["https://example.org"]'),
    ] = ()
    log_format: Annotated[
        Literal["json", "text"], Field(description="One JSON object a line, or text for people")
    ] = "json"
    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body")] = (
        64 * MEBIBYTE
    )
    image_roots: Annotated[
        tuple[Path, ...],
        Field(
            description="Folders whose images the service may send to the language model: "
            '["/images"]; the command line reads any'
        ),
    ] = ()

    llm_url: Annotated[
        str,
        Field(
            validation_alias=AliasChoices("ENRICH_LLM_URL", "OPENAI_BASE_URL"),
            description="OpenAI-compatible base URL, or replay:FILE.jsonl",
        ),
    ] = "https://api.openai.com/v1"
    llm_api_key: Annotated[
        SecretStr | None,
        Field(
            validation_alias=AliasChoices("ENRICH_LLM_API_KEY", "OPENAI_API_KEY"),
            description="Key for the language model's server",
        ),
    ] = None
    llm_hosts: Annotated[
        frozenset[str],
        Field(description='Hosts that may be asked, e.g. ["api.openai.com"]; default: any'),
    ] = frozenset()
    llm_model: Annotated[str, Field(description="Model asked for when none is named")] = (
        "gpt-4o-mini"
    )
    llm_timeout_seconds: Annotated[
        float, Field(gt=0, le=3600, description="Time the language model has for one answer")
    ] = 60.0
    llm_concurrency: Annotated[
        int, Field(ge=1, le=1000, description="Most calls to the language model at one time")
    ] = 64
    llm_calls_per_minute: Annotated[
        int | None,
        Field(ge=1, description="Most calls to the language model in a minute; default: no limit"),
    ] = None
    llm_tokens_per_minute: Annotated[
        int | None,
        Field(ge=1, description="Most tokens, asked and answered, in a minute; default: no limit"),
    ] = None
    prices: Annotated[
        dict[str, tuple[float, float]],
        Field(
            description='USD per million tokens in and out, by model: {"gpt-4o-mini": [0.15, 0.6]}'
        ),
    ] = {}
    run_lease_seconds: Annotated[
        float,
        Field(gt=0, le=3600, description="Time after which a killed process loses its runs"),
    ] = 10.0

    lease_seconds: Annotated[
        float, Field(gt=0, le=3600, description="Time a worker may be silent")
    ] = 60.0
    event_poll_seconds: Annotated[
        float, Field(gt=0, le=60, description="Pause between looks at a streamed job's events")
    ] = 0.5
    max_artifact_bytes: Annotated[int, Field(ge=1024, description="Largest artifact")] = (
        2048 * MEBIBYTE
    )

    @cached_property
    def sqlalchemy_url(self) -> str:
        """The database's URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir / 'enrich.db'}"

    @property
    def artifact_dir(self) -> Path:
        """Folder of the artifacts, each under its SHA-256."""
        return self.data_dir / "artifacts"


def environment_names(field: str) -> list[str]:
    """The environment variables that set `field`, the strongest first."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [f"ENRICH_{field.upper()}"]


def shown(settings: Settings, field: str) -> str | None:
    """The value of `field` as text that may be printed: secrets and passwords are masked."""
    value = getattr(settings, field)
    if field == "database_url":
        return make_url(settings.sqlalchemy_url).render_as_string(hide_password=True)
    if field == "llm_url":
        return without_password(settings.llm_url)
    return None if value is None else str(value)
