"""Translations: runs over the texts of a release.

The texts are stored with the run, so that a restarted run continues with the same texts. Each new
text is a generation with its own language, whose parent is the original text.
"""

from dataclasses import dataclass

from sqlmodel import Session

from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.core.settings import Settings
from enrich_service.generations.models import GenerationSource
from enrich_service.labels import service as labels
from enrich_service.labels.models import LabelSet
from enrich_service.prompts.schemas import PromptKind
from enrich_service.releases import service
from enrich_service.releases.schemas import TranslationCreate
from enrich_service.runs.items import SourceText, SourceTexts
from enrich_service.runs.plan import Plan, check_subject, choose
from enrich_service.runs.schemas import RunCreate

_KINDS = (PromptKind.DESCRIPTION, PromptKind.SENTENCES, PromptKind.CAPTIONS)


@dataclass(frozen=True)
class TranslationPlan:
    """The inputs of a run over the texts of a release."""

    body: RunCreate
    plan: Plan
    texts: SourceTexts


def prepare(
    session: Session,
    release_id: int,
    body: TranslationCreate,
    settings: Settings,
    source: GenerationSource,
) -> TranslationPlan:
    """Plan the translation of the texts of a release in the field that the prompt is for.

    Raises:
        NotFound: the release or prompt does not exist.
        InvalidInput: the prompt does not use texts of a release.
        Conflict: the release has no such texts, or they are all in that language already.
    """
    row = service.get(session, release_id)
    release = service.parsed(row)
    label_set = session.get_one(LabelSet, row.label_set_id)
    plan = choose(session, body, settings, source)
    check_subject(plan, texts=True)
    if plan.kind not in _KINDS:
        raise InvalidInput(f"prompt {plan.prompt!r}: {plan.kind} cannot be translated")
    sources = {origin.key: origin for origin in release.sources if origin.field == plan.kind}
    ids = {label.key: label.id for label in labels.labels_of(session, label_set)}
    language = body.language.strip().casefold()
    in_language = 0
    texts: dict[int, SourceText] = {}
    for label in release.labels:
        text = getattr(label, plan.kind)
        label_id = ids.get(label.key)
        if not text or label_id is None:
            continue
        origin = sources.get(label.key)
        if origin is not None and (origin.language or "").casefold() == language:
            in_language += 1
            continue
        texts[label_id] = SourceText(
            (text,) if isinstance(text, str) else text, origin.generation_id if origin else None
        )
    if not texts:
        reason = f"are already in {body.language}" if in_language else "do not exist"
        raise Conflict(f"The {plan.kind} texts of release {release.name!r} {reason}.")
    return TranslationPlan(RunCreate(label_set=label_set.name, **body.model_dump()), plan, texts)
