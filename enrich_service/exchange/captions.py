"""Export of image captions for training: one JSON object per line (`contract.ImageCaption`).

An image gets the locked caption, else the newest written by a person, else the newest of each
sample of the run's prompt version, model and language. Images are identified by the hash of their
bytes, so captions from earlier runs, and of images in renamed folders, are found.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, or_
from sqlmodel import col

from contract import ImageCaption
from enrich_service.core.errors import Conflict
from enrich_service.core.storage.database import reading
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    LANGUAGE,
    Generation,
    GenerationSource,
    GenerationStatus,
    Run,
    language_of,
)
from enrich_service.labels.models import LabelLine, LabelSet
from enrich_service.labels.service import lines_of
from enrich_service.llm.images import Roots, checked_folder, images_of
from enrich_service.prompts.schemas import PromptKind
from enrich_service.runs.items import IMAGES_PER_PAGE
from enrich_service.runs.service import get_run
from enrich_service.validation.answer import texts_of


def caption_lines(engine: Engine, run_id: int, roots: Roots) -> tuple[int, Iterator[str]]:
    """The expected number of captions of a run, and the existing ones as lines of JSON.

    Reads every image. `roots`: folders that may contain images (see `llm.images`).

    Raises:
        NotFound: the run does not exist.
        Conflict: the run has no images, or there is no caption yet.
        InvalidInput: its folder does not exist, or is not allowed.
    """
    with reading(engine) as session:
        run = get_run(session, run_id)
        if run.images is None:
            raise Conflict(f"Run {run_id} is a run over labels: choose a run over images.")
        label_set = session.get_one(LabelSet, run.label_set_id)
        classes = lines_of(session, label_set)
        session.expunge(run)
    lines = _lines(engine, run, checked_folder(run.images, roots), classes, roots)
    first = next(lines, None)
    if first is None:
        raise Conflict(
            f"Run {run_id} has no captions yet: resume it with `enrich run resume {run_id}`."
        )
    return run.total, chain([first], lines)


def _lines(
    engine: Engine, run: Run, folder: Path, classes: Sequence[LabelLine], roots: Roots
) -> Iterator[str]:
    for label in classes:
        for page in images_of(folder, label.key, roots, page=IMAGES_PER_PAGE):
            captions = _captions(engine, run, label, {image.hash for image in page})
            for image in page:
                for caption in captions.get(image.hash, ()):
                    line = ImageCaption(image=image.name, caption=caption)
                    yield line.model_dump_json() + "\n"


def _captions(engine: Engine, run: Run, label: LabelLine, hashes: set[str]) -> dict[str, list[str]]:
    """The captions of the images with these hashes, in the order of their samples."""
    human = col(Generation.source).in_((GenerationSource.PERSON, GenerationSource.IMPORT))
    columns: tuple[Any, ...] = (
        col(Generation.image_hash),
        col(Generation.sample_index),
        col(Generation.source),
        col(Generation.parsed),
        reviews.LOCKED,
    )
    query = (
        sa.select(*columns)
        .where(
            col(Generation.image_hash).in_(hashes),
            col(Generation.label_name) == label.name,
            col(Generation.label_context).is_not_distinct_from(label.context),
            col(Generation.prompt_version_id) == run.prompt_version_id,
            col(Generation.status) == GenerationStatus.ACCEPTED,
            or_(human, col(Generation.requested_model) == run.model),
            LANGUAGE.is_not_distinct_from(language_of(run)),
            ~reviews.REJECTED,
        )
        .order_by(col(Generation.id))
    )
    samples: dict[str, dict[int, str]] = defaultdict(dict)
    by_people: dict[str, str] = {}
    locked: dict[str, str] = {}
    with reading(engine) as session:
        for digest, sample, source, parsed, is_locked in session.execute(query):
            for text in texts_of(PromptKind.IMAGE_CAPTION, parsed):
                if is_locked:
                    locked[digest] = text
                elif source == GenerationSource.PERSON:
                    by_people[digest] = text
                else:
                    samples[digest][sample] = text
    chosen = {
        digest: [text for _, text in sorted(by_index.items())]
        for digest, by_index in samples.items()
    }
    return chosen | {digest: [text] for digest, text in (by_people | locked).items()}
