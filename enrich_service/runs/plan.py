"""The plan of a run or request: prompt version, model and parameters."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlmodel import Session

from enrich_service.core.errors import InvalidInput
from enrich_service.core.settings import Settings
from enrich_service.core.text import check_line
from enrich_service.generations.models import GenerationSource, Run
from enrich_service.llm.images import SIDE, ImageFile
from enrich_service.llm.protocol import RESERVED_PARAMETERS
from enrich_service.prompts import service as prompts
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.prompts.schemas import PromptKind
from enrich_service.prompts.templates import VARIABLES, variables_of
from enrich_service.runs.schemas import Choice
from enrich_service.validation.judge import Checks

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


@dataclass(frozen=True)
class Plan:
    """One prompt version, one model, one set of parameters."""

    prompt: str
    kind: str
    version: PromptVersion
    source: GenerationSource
    model: str
    parameters: Mapping[str, Any]
    variables: Mapping[str, Any] = field(
        default_factory=dict
    )  # n and language, if they differ from the defaults

    @cached_property
    def compares(self) -> bool:
        """Whether the prompt uses the names of confusable labels."""
        return "labels" in variables_of(self.version)

    @cached_property
    def _key_prefix(self) -> str:
        """The part of the text to be hashed that is the same for all labels."""
        kind = "replay" if self.source is GenerationSource.REPLAY else "model"
        return _JSON([self.version.content_hash, self.model, kind, dict(self.parameters)])[:-1]

    @cached_property
    def checks(self) -> Checks:
        """The checks that answers must pass."""
        return Checks.of(self.version.output_schema, self.version.validators)

    @cached_property
    def unique_texts(self) -> bool:
        """Whether the prompt's rules forbid that two labels have the same text."""
        return any(rule.get("rule") == "duplicate" for rule in self.version.validators)

    @cached_property
    def rewrites(self) -> bool:
        """Whether the prompt rewrites given texts, for example translates them."""
        return "texts" in variables_of(self.version)

    def item(  # noqa: PLR0913 - all parts of a request
        self,
        name: str,
        context: str | None,
        *,
        sample_index: int = 0,
        label_id: int | None = None,
        confusable: Sequence[str] = (),
        image: ImageFile | None = None,
        texts: Sequence[str] = (),
        parent_id: int | None = None,
    ) -> "Item":
        """The item of one label, or of one image of it, with its dedupe key.

        `confusable`: names of confusable labels; part of the key if the prompt uses them. An image
        is part of the key by its bytes and the size it is sent in. `texts`: texts to rewrite, from
        generation `parent_id`; part of the key.
        """
        parts: list[Any] = [name, context, sample_index]
        compared = tuple(confusable) if self.compares else ()
        if compared:
            parts.append(compared)
        if self.variables:
            parts.append(dict(self.variables))
        if image is not None:
            parts.append({"image": image.hash, "side": SIDE})
        if texts:
            parts.append({"texts": list(texts)})
        key = hashlib.sha256(f"{self._key_prefix},{_JSON(parts)[1:]}".encode()).hexdigest()
        return Item(
            name, context, sample_index, label_id, key, compared, image, tuple(texts), parent_id
        )


@dataclass(frozen=True)
class Item:
    """One sample of one label or image. `key` is its dedupe key."""

    name: str
    context: str | None
    sample_index: int
    label_id: int | None
    key: str
    confusable: tuple[str, ...] = ()
    image: ImageFile | None = None
    texts: tuple[str, ...] = ()
    parent_id: int | None = None


def choose(session: Session, choice: Choice, settings: Settings, source: GenerationSource) -> Plan:
    """The plan for the prompt version, model and parameters of `choice`.

    Raises NotFound for an unknown prompt or version, InvalidInput for invalid parameters.
    """
    version = _version(session, choice)
    prompt = session.get_one(Prompt, version.prompt_id)
    return plan_with(prompt.name, prompt.kind, version, choice, settings, source)


def plan_with(
    prompt: str,
    kind: str,
    version: PromptVersion,
    choice: Choice,
    settings: Settings,
    source: GenerationSource,
) -> Plan:
    """The plan for `version`, stored or not, with the parameters of `choice` and defaults."""
    defaults = dict(version.model_defaults)
    default_model = str(defaults.pop("model", "") or settings.llm_model)
    if reserved := RESERVED_PARAMETERS & choice.parameters.keys():
        raise InvalidInput(f"parameters: {min(reserved)!r} is set by the service: remove it")
    parameters = {**defaults, **choice.parameters}
    prompts.check_parameters(parameters)
    variables = _variables(choice, version)
    return Plan(prompt, kind, version, source, choice.model or default_model, parameters, variables)


def _variables(choice: Choice, version: PromptVersion) -> dict[str, Any]:
    """`n` and `language` if they differ from the defaults, so that older dedupe keys stay valid."""
    language = check_line("language", choice.language, limit=50)
    variables = {"n": choice.n, "language": language}
    variables = {name: value for name, value in variables.items() if value != VARIABLES[name][0]}
    if unused := variables.keys() - variables_of(version):
        name = min(unused)
        raise InvalidInput(
            f"{name}: version {version.number} of prompt {choice.prompt!r} does not use it: "
            f"add {{{{ {name} }}}} to the prompt, or leave it out"
        )
    return variables


def _version(session: Session, choice: Choice) -> PromptVersion:
    if choice.version is None and choice.alias is None:
        return prompts.resolve_default(session, choice.prompt)
    return prompts.resolve(session, choice.prompt, version=choice.version, alias=choice.alias)


def plan_of(session: Session, run: Run, source: GenerationSource) -> Plan:
    """The plan of a stored run."""
    version = session.get_one(PromptVersion, run.prompt_version_id)
    prompt = session.get_one(Prompt, version.prompt_id)
    return Plan(prompt.name, prompt.kind, version, source, run.model, run.parameters, run.variables)


def check_subject(plan: Plan, *, images: str | None = None, texts: bool = False) -> None:
    """Raise InvalidInput unless the plan's prompt fits the subject: labels, images or texts."""
    if plan.rewrites and not texts:
        raise InvalidInput(
            f"prompt {plan.prompt!r} rewrites texts: start it from a release "
            "(`enrich release translate RELEASE --language …`)"
        )
    if texts and not plan.rewrites:
        raise InvalidInput(
            f"prompt {plan.prompt!r} does not rewrite texts: choose one that uses {{{{ texts }}}}, "
            "such as translation"
        )
    if plan.kind == PromptKind.IMAGE_CAPTION and images is None:
        raise InvalidInput(
            f"prompt {plan.prompt!r} is for images: start a run with a folder of images "
            "(`enrich run start LABEL_SET --prompt … --images FOLDER`)"
        )
    if plan.kind != PromptKind.IMAGE_CAPTION and images is not None:
        raise InvalidInput(
            f"images: prompt {plan.prompt!r} is of the kind {plan.kind} and uses no images: "
            "choose a prompt of the kind image_caption, such as image-caption"
        )
