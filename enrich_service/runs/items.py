"""The items of a run: labels, images, or texts to rewrite."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session, col, select

from enrich_service.generations.models import Run, RunText
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label, LabelLine
from enrich_service.llm.images import Roots, images_of
from enrich_service.runs.plan import Item, Plan

IMAGES_PER_PAGE = 200  # hashed at a time


@dataclass(frozen=True)
class SourceText:
    """The texts of one label that a run rewrites, and the generation they are from, if known."""

    texts: tuple[str, ...]
    generation_id: int | None


SourceTexts = Mapping[int, SourceText]  # by label id


def source_texts(session: Session, run: Run, labels: Sequence[Label]) -> SourceTexts:
    """The texts of `labels` that a run rewrites."""
    rows = session.exec(
        select(RunText).where(
            RunText.run_id == run.id, col(RunText.label_id).in_([label.id for label in labels])
        )
    )
    return {row.label_id: SourceText(tuple(row.texts), row.generation_id) for row in rows}


def items_of(
    session: Session,
    plan: Plan,
    labels: Sequence[Label | LabelLine],
    samples: int,
    texts: SourceTexts | None = None,
) -> list[Item]:
    """The items of `labels`, `samples` per label.

    `texts`: texts to rewrite; labels without texts are skipped.
    """
    if texts is not None:
        with_texts = [
            (label, texts[label.id])
            for label in labels
            if label.id is not None and label.id in texts
        ]
        return [
            plan.item(
                label.name,
                label.context,
                sample_index=i,
                label_id=label.id,
                texts=source.texts,
                parent_id=source.generation_id,
            )
            for label, source in with_texts
            for i in range(samples)
        ]
    similar = (
        label_service.confusable_of(session, labels) if plan.compares else [[] for _ in labels]
    )
    return [
        plan.item(
            label.name,
            label.context,
            sample_index=i,
            label_id=label.id,
            confusable=[other.name for other in others],
        )
        for label, others in zip(labels, similar, strict=True)
        for i in range(samples)
    ]


def image_items(
    plan: Plan, label: Item, key: str, folder: Path, roots: Roots, samples: int
) -> Iterator[list[Item]]:
    """The items of the images of a label, in pages; `samples` per image.

    `label`: the item of the label without an image; `key`: the name of its folder. Reads every
    image.
    """
    for page in images_of(folder, key, roots, page=IMAGES_PER_PAGE):
        yield [
            plan.item(
                label.name,
                label.context,
                sample_index=i,
                label_id=label.label_id,
                confusable=label.confusable,
                image=image,
            )
            for image in page
            for i in range(samples)
        ]
