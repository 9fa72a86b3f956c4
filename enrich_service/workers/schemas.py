"""API schema of workers."""

import logging
import math
from datetime import datetime
from typing import Annotated, Any, Final, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from contract import WorkerOffers, first_error_line
from enrich_service.core.text import escaped

log = logging.getLogger(__name__)

MAX_WORKER_NAME: Final = 200  # characters
MAX_TEXT: Final = 1000  # characters of a path or name
MAX_ITEMS: Final = 500  # of each list
MAX_DEPTH: Final = 8
MAX_OFFERS_BYTES: Final = 300_000
_WHEN = "2026-01-02T03:04:05Z"
OFFERS_EXAMPLE: dict[str, Any] = {
    "version": "0.2.0",
    "device": "NVIDIA H200",
    "device_memory_gb": 140.0,
    "data_roots": ["/data"],
    "data": [
        {
            "path": "/data/tiny-imagenet-ood",
            "kind": "split folders",
            "classes": 120,
            "images": {"train": 12000, "val_on_train": 3000, "val": 2400},
        }
    ],
    "teachers": ["hf-hub:bench/lite0-minilm"],
    "students": ["resnet18.a1_in1k"],
    "recipes": [{"name": "resnet", "config": {"student": "resnet18", "epochs": 90}}],
}


def _worker_name(name: object) -> object:
    """Escape a worker's name to one line of visible characters."""
    if not isinstance(name, str):
        return name
    return escaped(" ".join(name.split()), MAX_WORKER_NAME) or "unnamed worker"


WorkerName = Annotated[str, BeforeValidator(_worker_name), Field(description="Worker name")]


def _cleaned(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - any JSON
    """`value` without what cannot be stored: truncated, escaped, without NaN and deep nesting."""
    if depth > MAX_DEPTH or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str):
        return escaped(value, MAX_TEXT)
    if isinstance(value, list):
        return [_cleaned(item, depth + 1) for item in value[:MAX_ITEMS]]
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ITEMS]
        return {escaped(str(key), MAX_TEXT): _cleaned(item, depth + 1) for key, item in items}
    return value


def _valid_offers(value: object) -> dict[str, Any]:
    """The fields of `value`, and the items of its lists, that are valid as `WorkerOffers`."""
    cleaned = _cleaned(value) if isinstance(value, dict) else {}
    offers: dict[str, Any] = {}
    for name, field in WorkerOffers.model_fields.items():
        if name not in cleaned:
            continue
        if get_origin(field.annotation) is not tuple:
            offers.update(_if_valid(name, cleaned[name]))
        elif isinstance(cleaned[name], list):
            valid = [_if_valid(name, [item]) for item in cleaned[name]]
            offers[name] = [item for fields in valid for item in fields.get(name, ())]
    return _truncated(offers)


def _if_valid(name: str, value: object) -> dict[str, Any]:
    """The validated field `name` of `WorkerOffers`; empty if `value` is invalid."""
    try:
        return {name: getattr(WorkerOffers.model_validate({name: value}), name)}
    except ValidationError as error:
        log.warning("ignored an invalid offer of a worker: %s", first_error_line(error))
        return {}


def _truncated(offers: dict[str, Any]) -> dict[str, Any]:
    """`offers` with the longest lists truncated until they fit into MAX_OFFERS_BYTES."""
    while len(WorkerOffers(**offers).model_dump_json()) > MAX_OFFERS_BYTES:
        longest = max(offers, key=lambda name: len(repr(offers[name])))
        offers[longest] = offers[longest][: len(offers[longest]) // 2]
        log.warning("truncated %s of a worker", longest)
    return offers


class Registration(BaseModel):
    """The resources of a worker. Invalid parts of `offers` are left out, not rejected."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"worker": "gpu-1", "gpu": True, "memory_gb": 64, "offers": OFFERS_EXAMPLE}
            ]
        },
    )

    worker: WorkerName
    gpu: Annotated[bool, Field(strict=True, description="Whether the worker has a GPU")] = False
    memory_gb: Annotated[
        float, Field(ge=0, strict=True, allow_inf_nan=False, description="Main memory in GiB")
    ] = 0
    offers: Annotated[WorkerOffers, BeforeValidator(_valid_offers)] = WorkerOffers()


class WorkerView(BaseModel):
    """A worker. `offers` is null if it has not registered its resources."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "gpu-1",
                    "running": True,
                    "job": 7,
                    "gpu": True,
                    "memory_gb": 64.0,
                    "offers": OFFERS_EXAMPLE,
                    "first_seen": _WHEN,
                    "last_seen": _WHEN,
                }
            ]
        }
    )

    name: str
    running: Annotated[bool, Field(description="Whether the worker was seen recently")]
    job: Annotated[int | None, Field(description="Id of its current job")] = None
    gpu: bool
    memory_gb: Annotated[float, Field(description="Main memory in GiB")]
    offers: WorkerOffers | None
    first_seen: datetime
    last_seen: datetime
