"""The language model that the settings name."""

from pathlib import Path

from enrich_service.core.errors import InvalidInput, LanguageModelError
from enrich_service.core.settings import Settings
from enrich_service.llm.chat_model import ChatModel
from enrich_service.llm.protocol import LanguageModel
from enrich_service.llm.replay import ReplayModel
from enrich_service.llm.ssrf_guard import check_host


def open_model(settings: Settings) -> LanguageModel:
    """The language model that the settings name.

    Raises:
        LanguageModelError: no language model is set.
        InvalidInput: the address or the replay file cannot be used.
    """
    scheme, _, path = settings.llm_url.partition(":")
    if scheme == "replay":
        return ReplayModel(Path(path))
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
    if not key and settings.llm_url == Settings.model_fields["llm_url"].default:
        raise LanguageModelError(
            "no language model is set: set OPENAI_API_KEY, and OPENAI_BASE_URL for another "
            "server than OpenAI's (a local one such as http://127.0.0.1:8080/v1 needs no key, "
            "replay:FILE.jsonl answers from a file)"
        )
    if key and not (key.isascii() and key.isprintable()):  # it would break the HTTP header
        raise InvalidInput("OPENAI_API_KEY contains invalid characters: copy it again")
    check_host(settings.llm_url, settings.llm_hosts)
    return ChatModel(settings.llm_url, key, settings.llm_timeout_seconds)
