"""Translations: the texts of a release, to be worked on by a run like any other.

What a run is given is frozen with it, so that it goes on with the same texts after a restart. Each
new text is a generation of its own language, and its parent is the text that it was made of.
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
class Prepared:
    """All that a run over the texts of a release needs."""

    body: RunCreate
    plan: Plan
    texts: SourceTexts


def prepared(
    session: Session,
    release_id: int,
    body: TranslationCreate,
    settings: Settings,
    source: GenerationSource,
) -> Prepared:
    """What to ask to translate the texts of a release, of the field that the prompt fills.

    Raises:
        NotFound: there is no such release or prompt.
        InvalidInput: the prompt works on no such texts.
        Conflict: the release has none, or has them in that language already.
    """
    row = service.get(session, release_id)
    release = service.parsed(row)
    label_set = session.get_one(LabelSet, row.label_set_id)
    plan = choose(session, body, settings, source)
    check_subject(plan, texts=True)
    if plan.kind not in _KINDS:
        raise InvalidInput(f"prompt {plan.prompt!r}: {plan.kind} cannot be worked on as texts")
    origins = {one.key: one for one in release.sources if one.field == plan.kind}
    ids = {label.key: label.id for label in labels.labels_of(session, label_set)}
    wanted = body.language.strip().casefold()
    there = 0
    texts: dict[int, SourceText] = {}
    for label in release.labels:
        given = getattr(label, plan.kind)
        label_id = ids.get(label.key)
        if not given or label_id is None:
            continue
        origin = origins.get(label.key)
        if origin is not None and (origin.language or "").casefold() == wanted:
            there += 1
            continue
        texts[label_id] = SourceText(
            (given,) if isinstance(given, str) else given, origin.generation_id if origin else None
        )
    if not texts:
        why = f"are in {body.language} already" if there else "are not there"
        raise Conflict(f"The {plan.kind} texts of release {release.name!r} {why}.")
    return Prepared(RunCreate(label_set=label_set.name, **body.model_dump()), plan, texts)
