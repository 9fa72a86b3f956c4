"""Import and export: the paper's pairs of text files, and JSONL of all records.

Both ways keep provenance: a text that was imported twice is stored once, and a release that
travelled keeps its hash.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ValidationError
from sqlmodel import Session, col, select

from contract import Release, first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.core.text import check_text, shortened
from enrich_service.exchange.schemas import (
    GENERATION_FIELDS,
    AliasRecord,
    ArchivedRecord,
    GenerationRecord,
    Header,
    Imported,
    LabelSetRecord,
    MoveRecord,
    ReleaseRecord,
    ReviewRecord,
    VersionRecord,
)
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    Run,
    TextReview,
)
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label, LabelSet
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.models import Alias, AliasMove, Prompt, PromptVersion
from enrich_service.prompts.schemas import (
    AliasPut,
    PromptCreate,
    PromptKind,
    VersionContent,
    VersionCreate,
)
from enrich_service.releases import service as release_service
from enrich_service.releases.models import ReleaseRow
from enrich_service.validation.accepted_texts import AcceptedTextIndex
from enrich_service.validation.answer import Answer, texts_of
from enrich_service.validation.rules import DEFAULT_RULES, check

_SHOWN_PROBLEMS = 100
_OF_A_PROMPT = {*VersionCreate.model_fields, "kind", "summary", "tags"}
_DELIVERED = "Delivered with the service"  # the first move's reason, from migrations/seeds.py
_RESULTS = (GenerationStatus.ACCEPTED, GenerationStatus.REJECTED)


def import_pairs(
    session: Session,
    name: str,
    label2text: str,
    descriptions: str | None = None,
    *,
    context: str | None = None,
    author: str = "",
    check_texts: bool = True,
) -> Imported:
    """Create a label set from the paper's label2text.txt, with one text per line of chatgpt.txt.

    With `check_texts`, a text that the validators find faulty is stored as rejected: it stays to
    be seen, and no release takes it.
    """
    check_text("The author", author, limit=200)
    labels = [
        label.model_copy(update={"context": context})
        for label in label_service.parse_label2text(label2text.splitlines())
    ]
    label_set = label_service.create(session, name, labels)
    result = Imported(label_sets=[name])
    if descriptions is None:
        return result
    lines = descriptions.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) != len(labels):
        raise InvalidInput(
            f"There are {len(labels)} labels and {len(lines)} lines of text: "
            "the n-th line must describe the n-th label"
        )
    given = [
        (label, {"description": " ".join(line.split())}, line)
        for label, line in zip(label_service.labels_of(session, label_set), lines, strict=True)
    ]
    store_imported_texts(
        session, result, PromptKind.DESCRIPTION, given, author=author, check_texts=check_texts
    )
    return result


def store_imported_texts(
    session: Session,
    result: Imported,
    kind: PromptKind,
    given: Iterable[tuple[Label, dict[str, Any], str]],
    *,
    author: str,
    check_texts: bool,
) -> None:
    """Store one imported text per label, parsed and raw, and count it in `result`.

    With `check_texts`, one that the validators find faulty is stored as rejected.
    """
    accepted_texts = AcceptedTextIndex()
    rows = []
    for label, parsed, raw in given:
        texts = texts_of(kind, parsed)
        answer = Answer(
            label.name,
            label.context,
            kind,
            raw=raw,
            parsed=parsed,
            texts=texts,
            others=accepted_texts.by_others_than(label.name),
        )
        verdict = check(DEFAULT_RULES if check_texts else [{"rule": "empty"}], answer)
        accepted = not verdict.problems
        if accepted:
            accepted_texts.add(label.name, kind, texts)
        rows.append(
            Generation(
                source=GenerationSource.IMPORT,
                status=GenerationStatus.ACCEPTED if accepted else GenerationStatus.REJECTED,
                kind=kind,
                label_id=label.id,
                label_name=label.name,
                label_context=label.context,
                raw_reply=raw,
                parsed=parsed,
                problems=list(verdict.problems),
                flags=list(verdict.flags),
                calls=0,
                author=author,
            )
        )
        result.problems += [f"{label.name!r}: {problem}" for problem in verdict.problems]
    session.add_all(rows)
    session.flush()
    accepted_rows = sum(row.status is GenerationStatus.ACCEPTED for row in rows)
    result.generations += accepted_rows
    result.rejected += len(rows) - accepted_rows
    result.problems = result.problems[:_SHOWN_PROBLEMS]


def label2text(release: Release) -> str:
    """The labels of a release as the paper's label2text.txt."""
    return "".join(
        f"{label.key.replace(' ', '_')} {number} {label.name.replace(' ', '_')}\n"
        for number, label in enumerate(release.labels, start=1)
    )


def descriptions(release: Release) -> str:
    """The descriptions of a release as the paper's chatgpt.txt; empty lines for missing ones."""
    return "".join(" ".join((label.description or "").split()) + "\n" for label in release.labels)


def export_jsonl(session: Session, label_set: str | None = None) -> Iterator[str]:
    """All label sets, prompts, generations and releases (of one label set) as lines of JSON."""
    yield _line(Header())
    sets = select(LabelSet).order_by(col(LabelSet.id))
    if label_set is not None:
        sets = sets.where(LabelSet.id == label_service.get(session, label_set).id)
    chosen = session.exec(sets).all()
    for chosen_set in chosen:
        rows = label_service.labels_of(session, chosen_set)
        labels = [LabelIn(key=row.key, name=row.name, context=row.context) for row in rows]
        near = zip(rows, label_service.confusable_of(session, rows), strict=True)
        confusable = {row.key: [other.key for other in others] for row, others in near if others}
        yield _line(LabelSetRecord(name=chosen_set.name, labels=labels, confusable=confusable))
    yield from _export_prompts(session)
    for record in generation_records(session, label_set):
        yield _line(record)
    for review, _, _ in reviews(session, label_set):
        yield _line(
            ReviewRecord(
                generation=review.generation_id,
                **review.model_dump(include={"action", "reason", "author", "at"}),
            )
        )
    ids = [chosen_set.id for chosen_set in chosen]
    for body in session.exec(
        select(ReleaseRow.body)
        .where(col(ReleaseRow.label_set_id).in_(ids))
        .order_by(col(ReleaseRow.id))
    ):
        yield _line(ReleaseRecord(release=Release.model_validate_json(body)))


def generation_records(session: Session, label_set: str | None = None) -> Iterator[BaseModel]:
    """All generations (of one label set) with provenance, oldest first."""
    query = (
        sa.select(Generation, col(Label.key), col(LabelSet.name), col(PromptVersion.content_hash))
        .outerjoin(Label, col(Label.id) == col(Generation.label_id))
        .outerjoin(LabelSet, col(LabelSet.id) == col(Label.label_set_id))
        .outerjoin(PromptVersion, col(PromptVersion.id) == col(Generation.prompt_version_id))
        .order_by(col(Generation.id))
        .execution_options(yield_per=500)
    )
    if label_set is not None:
        query = query.where(_serves(label_service.get(session, label_set)))
    for row, key, set_name, prompt_hash in session.execute(query):
        yield GenerationRecord(
            id=row.id,
            parent_id=row.parent_id,
            label_set=set_name,
            label_key=key,
            prompt_hash=prompt_hash,
            **{name: getattr(row, name) for name in GENERATION_FIELDS},
        )
        session.expunge(row)


def reviews(
    session: Session, label_set: str | None = None
) -> Iterator[tuple[TextReview, str, str]]:
    """All reviews (of one label set), each with the text's kind and label."""
    query = (
        sa.select(TextReview, col(Generation.kind), col(Generation.label_name))
        .join(Generation, col(Generation.id) == col(TextReview.generation_id))
        .order_by(col(TextReview.id))
    )
    if label_set is not None:
        query = query.where(_serves(label_service.get(session, label_set)))
    for said, kind, name in session.execute(query):
        yield said, str(kind), name


def _serves(label_set: LabelSet) -> sa.ColumnElement[bool]:
    """Generations that belong to a label of `label_set`, by id or by name and context."""
    return (
        sa.exists()
        .where(
            col(Label.label_set_id) == label_set.id,
            col(Label.name) == col(Generation.label_name),
            col(Label.context).is_not_distinct_from(col(Generation.label_context)),
        )
        .correlate(Generation)
    )


def _export_prompts(session: Session) -> Iterator[str]:
    for prompt in session.exec(select(Prompt).order_by(col(Prompt.id))).all():
        for version in reversed(prompt_service.versions(session, prompt)):
            yield _line(version_record(session, prompt, version))
        # After the versions: an archived prompt accepts none.
        if prompt.archived_at is not None:
            yield _line(ArchivedRecord(prompt=prompt.name, at=prompt.archived_at))
        moves = select(AliasMove).where(AliasMove.prompt_id == prompt.id)
        for move in session.exec(moves.order_by(col(AliasMove.id))):
            yield _line(
                MoveRecord(
                    prompt=prompt.name,
                    version=move.to_number,
                    **move.model_dump(include={"name", "reason", "author", "at"}),
                )
            )
        aliases = session.exec(
            select(Alias, PromptVersion.content_hash)
            .join(PromptVersion, col(PromptVersion.id) == col(Alias.version_id))
            .where(Alias.prompt_id == prompt.id)
            .order_by(Alias.name)
        )
        for alias, digest in aliases:
            yield _line(
                AliasRecord(
                    prompt=prompt.name,
                    name=alias.name,
                    content_hash=digest,
                    protected=alias.protected,
                )
            )


def version_record(session: Session, prompt: Prompt, version: PromptVersion) -> VersionRecord:
    """The export record of a prompt version."""
    return VersionRecord(
        prompt=prompt.name,
        kind=PromptKind(prompt.kind),
        summary=prompt.summary,
        tags=prompt_service.tags_of(session, prompt),
        **version.model_dump(exclude={"id", "prompt_id"}),
    )


def _line(record: BaseModel) -> str:
    return record.model_dump_json() + "\n"


_RECORDS: dict[str, type[BaseModel]] = {
    "enrich-export": Header,
    "label_set": LabelSetRecord,
    "prompt_version": VersionRecord,
    "archived": ArchivedRecord,
    "alias_move": MoveRecord,
    "alias": AliasRecord,
    "generation": GenerationRecord,
    "review": ReviewRecord,
    "release": ReleaseRecord,
}


def import_jsonl(session: Session, lines: Iterable[str]) -> Imported:
    """Import the lines of `export_jsonl`. Raises InvalidInput for the first invalid line.

    What is there already is left as it is; nothing is overwritten. A prompt that came with the
    service takes the archive and the moves of the file as long as nobody here has used it.
    """
    return Importer(session).run(lines)


class Importer:
    """One import: maps ids and names of the file to rows of this database.

    `here`: the file holds no prompts and label sets; it names those of this database.
    """

    def __init__(self, session: Session, *, here: bool = False) -> None:
        self.session = session
        self.here = here
        self.done = Imported()
        self.versions: dict[str, int] = {}  # content hash → id
        self.numbers: dict[tuple[str, int], int] = {}  # prompt, number in the file → number here
        self.open: dict[str, bool] = {}  # prompt → new here, or unmodified since installation
        self.moved: set[tuple[str, str]] = set()  # prompt, alias: their moves are imported
        self.generations: dict[int, int] = {}  # id in the file → id here
        self.labels: dict[str, dict[str, int]] = {}  # label set → key → id
        if here:
            known = select(PromptVersion.content_hash, PromptVersion.id)
            self.versions = {digest: id for digest, id in session.exec(known) if id is not None}

    def run(self, lines: Iterable[str]) -> Imported:
        """Import the lines of a JSONL export."""
        number = 0
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
                kind = raw.get("record") if isinstance(raw, dict) else None
                if number == 1 and kind != "enrich-export":
                    raise InvalidInput("this is not an export of this service")
                model = _RECORDS.get(str(kind))
                if model is None:
                    raise InvalidInput(f"unknown record {shortened(str(kind))}")
                self.take(model.model_validate_json(line))
            except ValidationError as error:
                reason = first_error_line(error, "")
                raise InvalidInput(f"Line {number}: {reason}") from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise InvalidInput(f"Line {number} is not valid JSON: {error}") from error
            except InvalidInput as error:
                raise InvalidInput(f"Line {number}: {error}") from error
        if not number:
            raise InvalidInput("The file is empty")
        self.session.flush()
        return self.done

    def take(self, record: BaseModel) -> None:
        """Import one record; existing rows are unchanged."""
        if isinstance(record, LabelSetRecord):
            self._label_set(record)
        elif isinstance(record, VersionRecord):
            self._version(record)
        elif isinstance(record, ArchivedRecord):
            self._archived(record)
        elif isinstance(record, MoveRecord):
            self._move(record)
        elif isinstance(record, AliasRecord):
            self._alias(record)
        elif isinstance(record, ReleaseRecord):
            row, new = release_service.import_release(self.session, record.release)
            self.note(self.done.releases, row.name, new)
        elif isinstance(record, GenerationRecord):
            self._generation(record)
        elif isinstance(record, ReviewRecord):
            self._review(record)

    def note(self, names: list[str], name: str, new: bool) -> None:
        """Count `name` as added or as existing."""
        if new:
            names.append(name)
        else:
            self.done.there_already += 1

    def _label_set(self, record: LabelSetRecord) -> None:
        row, new = release_service.label_set_of(self.session, record.name, record.labels)
        self.note(self.done.label_sets, record.name, new)
        if new:
            label_service.set_confusable(self.session, row, record.confusable)
        self._know(row)

    def _know(self, label_set: LabelSet) -> None:
        self.labels[label_set.name] = {
            label.key: label.id
            for label in label_service.labels_of(self.session, label_set)
            if label.id is not None
        }

    def _version(self, record: VersionRecord) -> None:
        content = record.model_dump(include=set(VersionContent.model_fields))
        if prompt_service.content_hash(kind=record.kind, **content) != record.content_hash:
            raise InvalidInput(
                f"version {record.number} of prompt {shortened(record.prompt)} does not have the "
                "hash that it claims"
            )
        found = self.session.exec(select(Prompt).where(Prompt.name == record.prompt)).one_or_none()
        if record.prompt not in self.open:
            self.open[record.prompt] = found is None or self._as_delivered(found)
        if found is None:
            body = PromptCreate(name=record.prompt, **record.model_dump(include=_OF_A_PROMPT))
            _, version = prompt_service.create(self.session, body)
            new = True
        else:
            same = [
                row
                for row in prompt_service.versions(self.session, found)
                if row.content_hash == record.content_hash
            ]
            new = not same
            version = (
                prompt_service.create_version(self.session, found, record)[0] if new else same[0]
            )
        if new:
            version.created_at = record.created_at
            self.session.add(version)
        assert version.id is not None
        self.versions[record.content_hash] = version.id
        self.numbers[record.prompt, record.number] = version.number
        self.note(self.done.prompt_versions, f"{record.prompt} {version.number}", new)

    def _archived(self, record: ArchivedRecord) -> None:
        prompt = prompt_service.get(self.session, record.prompt)
        if self.open.get(record.prompt) and prompt.archived_at is None:
            prompt.archived_at = record.at
            self.session.add(prompt)
            self.session.flush()

    def _move(self, record: MoveRecord) -> None:
        prompt = prompt_service.get(self.session, record.prompt)
        if not (self.open.get(record.prompt) or self._takes(prompt, record.name)):
            return
        version = self.numbers.get((record.prompt, record.version))
        if version is None:
            raise InvalidInput(
                f"alias {shortened(record.name)} of prompt {shortened(record.prompt)} moves to "
                f"version {record.version}, which is not in the file"
            )
        prompt_service.move_alias(
            self.session,
            prompt,
            record.name,
            AliasPut(version=version, reason=record.reason, author=record.author),
            at=record.at,
        )
        self.moved.add((record.prompt, record.name))

    def _as_delivered(self, prompt: Prompt) -> bool:
        """Whether a built-in prompt is unmodified and unused."""
        log = select(AliasMove.reason).where(AliasMove.prompt_id == prompt.id)
        versions = [version.id for version in prompt_service.versions(self.session, prompt)]
        uses = (
            select(Run.id).where(col(Run.prompt_version_id).in_(versions)),
            select(Generation.id).where(col(Generation.prompt_version_id).in_(versions)),
        )
        return (
            self.session.exec(log).all() == [_DELIVERED]
            and len(versions) == 1
            and not any(self.session.exec(query.limit(1)).first() for query in uses)
        )

    def _takes(self, prompt: Prompt, alias: str) -> bool:
        """Whether an alias does not exist yet, or was created by this import."""
        there = select(Alias.id).where(Alias.prompt_id == prompt.id, Alias.name == alias)
        return (prompt.name, alias) in self.moved or self.session.exec(there).first() is None

    def _alias(self, record: AliasRecord) -> None:
        prompt = prompt_service.get(self.session, record.prompt)
        version = self.versions.get(record.content_hash)
        if version is not None and self._takes(prompt, record.name):
            # Logs nothing if the imported moves led there already; older files have no moves.
            prompt_service.move_alias(
                self.session,
                prompt,
                record.name,
                AliasPut(
                    version=self.session.get_one(PromptVersion, version).number,
                    reason="import",
                    protected=record.protected,
                ),
            )

    def _generation(self, record: GenerationRecord) -> None:
        there = self._same(record)
        if there is not None:
            self.generations[record.id] = there
            self.done.there_already += 1
            return
        if record.prompt_hash is not None and record.prompt_hash not in self.versions:
            where = "here: import the prompt first" if self.here else "in the file"
            raise InvalidInput(f"generation {record.id} names a prompt version that is not {where}")
        if self.here and record.label_set is not None and record.label_set not in self.labels:
            self._know(label_service.get(self.session, record.label_set))
        if record.parent_id is not None and record.parent_id not in self.generations:
            raise InvalidInput(f"generation {record.id} comes before its parent")
        row = Generation(
            label_id=self.labels.get(record.label_set or "", {}).get(record.label_key or ""),
            prompt_version_id=self.versions.get(record.prompt_hash or ""),
            parent_id=self.generations.get(record.parent_id or 0),
            **{name: getattr(record, name) for name in GENERATION_FIELDS},
        )
        self.session.add(row)
        self.session.flush()
        assert row.id is not None
        self.generations[record.id] = row.id
        if row.status is GenerationStatus.ACCEPTED:
            self.done.generations += 1
        elif row.status is GenerationStatus.REJECTED:
            self.done.rejected += 1

    def _review(self, record: ReviewRecord) -> None:
        generation_id = self.generations.get(record.generation)
        if generation_id is None:
            raise InvalidInput(f"a review names generation {record.generation}, which is not there")
        row = TextReview(
            generation_id=generation_id,
            **record.model_dump(include={"action", "reason", "author", "at"}),
        )
        same = select(TextReview.id).where(
            TextReview.generation_id == generation_id,
            TextReview.action == row.action,
            TextReview.author == row.author,
            TextReview.at == row.at,
        )
        if self.session.exec(same.limit(1)).one_or_none() is None:
            self.session.add(row)
            self.session.flush()

    def _same(self, record: GenerationRecord) -> int | None:
        """The id of the row with the same content, or of a result for the same dedupe key."""
        query = select(Generation.id)
        if record.dedupe_key is not None and record.status in _RESULTS:
            query = query.where(
                Generation.dedupe_key == record.dedupe_key, col(Generation.status).in_(_RESULTS)
            )
        else:
            query = query.where(
                Generation.label_name == record.label_name,
                Generation.created_at == record.created_at,
                Generation.source == record.source,
                Generation.kind == record.kind,
                Generation.attempt == record.attempt,
                col(Generation.raw_reply).is_not_distinct_from(record.raw_reply),
            )
        return self.session.exec(query.limit(1)).one_or_none()
