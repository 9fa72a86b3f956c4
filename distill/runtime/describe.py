"""Descriptions for new classes that are given by name only, from the service or a language model.

The service uses the prompt version of the release, so that the text resembles those that the
student was trained with. A language model without the service gets the prompt of Li et al.
(ICCV 2023).
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
URL_SCHEMES: Final = ("http://", "https://")
PROMPT: Final = (
    "Use a single sentence to describe the appearance and shape of {name}. "
    "Only describe the shape and appearance."
)


class Description(BaseModel):
    """The fields used of one item in the response to `POST /v1/describe`."""

    status: str
    problems: tuple[str, ...]
    text: str | None
    texts: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]


DESCRIPTIONS: Final = TypeAdapter(tuple[Description, ...])


def describe(
    name: str, info: TextInfo, service: str | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...] | None:
    """Texts for the class `name`, from the enrichment service at `service`, else from the language
    model at OPENAI_BASE_URL with OPENAI_API_KEY and ENRICH_LLM_MODEL (default gpt-4o-mini).

    None if the student was trained with names only, so that a new class needs no text.

    Raises:
        ServiceError: the service's address is no URL; the service or model does not answer, rejects
            the request, or has no text.
        ClassifierError: neither is configured.
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
    if not service.lower().startswith(URL_SCHEMES):
        raise ServiceError(
            f"the address of --service must begin with http:// or https://: {service!r} does not"
        )
    body: dict[str, Any] = {"labels": [{"name": name, "context": info.context}]}
    if info.prompt is not None:
        body |= {"prompt": info.prompt, "version": info.prompt_version}
    url = f"{service.rstrip('/')}/v1/describe"
    document = _post(url, body, key, "the service")
    try:
        (described,) = DESCRIPTIONS.validate_python(document)
    except ValueError:  # from pydantic, or not exactly one item
        raise ServiceError(
            f"{url} does not answer like an enrichment service: check the address of --service"
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
        raise ServiceError(f"the service returned an empty text for {name!r}: try again") from None
    prefix = prefix_of(label, strategy)
    return tuple(dict.fromkeys(prompt.removeprefix(prefix) for prompt in prompts))


def _by_language_model(name: str, info: TextInfo, environment: Mapping[str, str]) -> str:
    base = environment.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not base.startswith(URL_SCHEMES):
        raise ServiceError(
            f"OPENAI_BASE_URL is {base}, which only the enrichment service supports: start it and "
            "give --service URL"
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
        raise ServiceError(f"the language model at {base} returned no text for {name!r}: try again")
    return text


def _post(url: str, body: dict[str, Any], key: str | None, server: str) -> Any:  # noqa: ANN401
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ServiceError(
            f"{server} at {url} does not answer ({reason}): is it running?"
        ) from None
    if response.status_code in (401, 403):
        variable = "ENRICH_API_KEY" if server == "the service" else "OPENAI_API_KEY"
        raise ServiceError(f"{server} at {url} rejects the API key: set {variable}")
    try:
        document = response.json()
    except ValueError:
        document = None
    if response.status_code != 200 or document is None:
        detail = " ".join(_detail(document).split())[:200]
        raise ServiceError(f"{server} at {url} answers {response.status_code}{detail}")
    return document


def _detail(document: object) -> str:
    """The message in a problem document or in an error of the OpenAI protocol, after ": "."""
    if not isinstance(document, dict):
        return ""
    error = document.get("error")
    message = error.get("message") if isinstance(error, dict) else document.get("detail")
    return f": {message}" if message else ""
