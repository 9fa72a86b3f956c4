"""What a new class looks like, where its name alone is given: asked of those who can describe.

Notable: a service is asked with the prompt version of the release, so that the text is like those
that the student was trained with. A language model alone does not know that prompt, and gets the
one of Li et al. (ICCV 2023).
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import httpx
from pydantic import BaseModel, TypeAdapter

from contract import ReleaseLabel
from distill.embeddings.class_prompts import prefix_of, prompts_of
from distill.errors import ClassifierError, ServiceError, TextError
from distill.runtime.manifest import TextInfo

TIMEOUT_S: Final = 120.0
DEFAULT_MODEL: Final = "gpt-4o-mini"
PROMPT: Final = (
    "Use a single sentence to describe the appearance and shape of {name}. "
    "Only describe the shape and appearance."
)


class Description(BaseModel):
    """What is read of one entry of the answer to `POST /v1/describe`."""

    status: str
    problems: tuple[str, ...]
    text: str | None
    texts: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]


DESCRIPTIONS: Final = TypeAdapter(tuple[Description, ...])


def describe(
    name: str, info: TextInfo, service: str | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...] | None:
    """Texts for the class `name`: by the `service` at that address, else by the language model
    of OPENAI_BASE_URL and OPENAI_API_KEY, with the model ENRICH_LLM_MODEL (gpt-4o-mini).

    None where the student was trained with names alone, so that a new class needs no text either.

    Raises:
        ServiceError: the one that was asked does not answer, refuses, or has no text.
        ClassifierError: there is nobody to ask.
    """
    name = " ".join(name.split())
    if info.strategy == "name":
        return None
    if service is not None:
        return _by_service(name, info, service, environment.get("ENRICH_API_KEY"))
    if environment.get("OPENAI_API_KEY") or environment.get("OPENAI_BASE_URL"):
        return (_by_language_model(name, info, environment),)
    raise ClassifierError(
        f"the new class {name!r} needs a description: give one, name an enrichment service with "
        "--service URL, or set OPENAI_API_KEY"
    )


def _by_service(name: str, info: TextInfo, service: str, key: str | None) -> tuple[str, ...]:
    body: dict[str, Any] = {"labels": [{"name": name, "context": info.context}]}
    if info.prompt is not None:
        body |= {"prompt": info.prompt, "version": info.prompt_version}
    url = f"{service.rstrip('/')}/v1/describe"
    document = _post(url, body, key, "the service")
    try:
        (described,) = DESCRIPTIONS.validate_python(document)
    except ValueError:  # pydantic's, or more than one
        raise ServiceError(
            f"{url} does not answer as an enrichment service does: check the address of --service"
        ) from None
    if described.status != "accepted":
        problems = "; ".join(described.problems) or described.status
        raise ServiceError(
            f"the service has no text for {name!r} ({problems}): describe the class yourself"
        )
    label = ReleaseLabel(
        key=name,
        name=name,
        description=described.text,
        attributes=described.attributes,
        sentences=described.texts,
        captions=described.texts,
    )
    strategy = info.strategy
    if strategy == "attributes" and not label.attributes:
        strategy = "name+description"
    try:
        prompts = prompts_of(label, strategy)
    except TextError:
        raise ServiceError(f"the service gave an empty text for {name!r}: try again") from None
    prefix = prefix_of(label, strategy)
    return tuple(dict.fromkeys(prompt.removeprefix(prefix) for prompt in prompts))


def _by_language_model(name: str, info: TextInfo, environment: Mapping[str, str]) -> str:
    base = environment.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not base.startswith(("http://", "https://")):
        raise ServiceError(
            f"OPENAI_BASE_URL is {base}, which only the service can ask: start it, and give "
            "--service URL"
        )
    called = f"{name} ({info.context})" if info.context else name
    body = {
        "model": environment.get("ENRICH_LLM_MODEL") or DEFAULT_MODEL,
        "messages": [{"role": "user", "content": PROMPT.format(name=called)}],
    }
    url = f"{base.rstrip('/')}/chat/completions"
    reply = _post(url, body, environment.get("OPENAI_API_KEY"), "the language model")
    try:
        text = str(reply["choices"][0]["message"]["content"] or "").strip()
    except (KeyError, IndexError, TypeError):
        text = ""
    if not text:
        raise ServiceError(f"the language model at {base} gave no text for {name!r}: try again")
    return text


def _post(url: str, body: dict[str, Any], key: str | None, who: str) -> Any:  # noqa: ANN401
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ServiceError(f"{who} at {url} does not answer ({said}): is it running?") from None
    if response.status_code in (401, 403):
        variable = "ENRICH_API_KEY" if who == "the service" else "OPENAI_API_KEY"
        raise ServiceError(f"{who} at {url} rejects the API key: set {variable}")
    try:
        document = response.json()
    except ValueError:
        document = None
    if response.status_code != 200 or document is None:
        said = " ".join(_detail(document).split())[:200]
        raise ServiceError(f"{who} at {url} answers {response.status_code}{said}")
    return document


def _detail(document: object) -> str:
    """What a problem document or an error of the OpenAI protocol says."""
    if not isinstance(document, dict):
        return ""
    error = document.get("error")
    said = error.get("message") if isinstance(error, dict) else document.get("detail")
    return f": {said}" if said else ""
