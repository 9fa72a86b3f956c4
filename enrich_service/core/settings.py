"""Settings from environment variables. `enrich settings` lists them with secrets masked."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url

from enrich_service.core.prices import AS_OF, with_known_prices
from enrich_service.core.text import without_password

MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """All settings of the service, prefix `ENRICH_`."""

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
    port: Annotated[int, Field(ge=0, le=65535, description="Port; 0 picks a free one")] = 8000
    allow_remote: Annotated[
        bool,
        Field(description="While there are no API keys: accept requests from other machines"),
    ] = False
    rate_limit: Annotated[
        float,
        Field(gt=0, description="Requests per second and API key, in each process"),
    ] = 100.0
    cors_origins: Annotated[
        tuple[str, ...],
        Field(description='Origins allowed to send cross-site requests: ["https://example.org"]'),
    ] = ()
    log_format: Annotated[
        Literal["json", "text"], Field(description="json: one object per line; text: for people")
    ] = "json"
    max_body_bytes: Annotated[int, Field(ge=1024, description="Maximum request body in bytes")] = (
        64 * MEBIBYTE
    )
    image_roots: Annotated[
        tuple[Path, ...],
        Field(
            description="Folders with images that may be sent to the language model: "
            '["/images"]; commands may read any folder'
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
            description="API key of the language model's server",
        ),
    ] = None
    llm_hosts: Annotated[
        frozenset[str],
        Field(
            description='Allowed hosts of language models, e.g. ["api.openai.com"]; default: any'
        ),
    ] = frozenset()
    llm_model: Annotated[str, Field(description="Default language model")] = "gpt-4o-mini"
    llm_timeout_seconds: Annotated[
        float, Field(gt=0, le=3600, description="Timeout of one language-model call")
    ] = 60.0
    llm_concurrency: Annotated[
        int, Field(ge=1, le=1000, description="Maximum concurrent language-model calls")
    ] = 64
    llm_calls_per_minute: Annotated[
        int | None,
        Field(ge=1, description="Maximum language-model calls per minute; default: no limit"),
    ] = None
    llm_tokens_per_minute: Annotated[
        int | None,
        Field(ge=1, description="Maximum input and output tokens per minute; default: no limit"),
    ] = None
    prices: Annotated[
        dict[str, tuple[float, float]],
        AfterValidator(with_known_prices),
        Field(
            validate_default=True,
            description="USD per million input and output tokens, by model: "
            '{"gpt-4o-mini": [0.15, 0.6]}'
            f". Adds to and overrides the prices of common models as of {AS_OF}",
        ),
    ] = {}
    run_lease_seconds: Annotated[
        float,
        Field(gt=0, le=3600, description="Lease of a process on its runs"),
    ] = 10.0

    lease_seconds: Annotated[
        float, Field(gt=0, le=3600, description="Lease of a worker on its job")
    ] = 60.0
    event_poll_seconds: Annotated[
        float, Field(gt=0, le=60, description="Polling interval of event streams")
    ] = 0.5
    max_artifact_bytes: Annotated[
        int, Field(ge=1024, description="Maximum artifact size in bytes")
    ] = 2048 * MEBIBYTE

    @cached_property
    def sqlalchemy_url(self) -> str:
        """The database URL: `database_url` or its default."""
        return self.database_url or f"sqlite:///{self.data_dir / 'enrich.db'}"

    @property
    def artifact_dir(self) -> Path:
        """Folder of the artifacts, each named by its SHA-256."""
        return self.data_dir / "artifacts"


def environment_names(field: str) -> list[str]:
    """The environment variables that set `field`, in order of precedence."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [f"ENRICH_{field.upper()}"]


def masked_value(settings: Settings, field: str) -> str | None:
    """The value of `field` as text, with secrets and passwords masked."""
    value = getattr(settings, field)
    if field == "database_url":
        return make_url(settings.sqlalchemy_url).render_as_string(hide_password=True)
    if field == "llm_url":
        return without_password(settings.llm_url)
    return None if value is None else str(value)
