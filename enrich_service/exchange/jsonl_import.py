"""Import of JSONL exports.

A text that is imported twice is stored once, and a release keeps its hash.
"""

import json
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError
from sqlmodel import Session, col, select

from contract import first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.core.text import shortened
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
    GenerationStatus,
    Run,
    TextReview,
)
from enrich_service.labels import service as label_service
from enrich_service.labels.models import LabelSet
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.models import Alias, AliasMove, Prompt, PromptVersion
from enrich_service.prompts.schemas import (
    AliasPut,
    PromptCreate,
    VersionContent,
    VersionCreate,
)
from enrich_service.releases import service as release_service

_PROMPT_FIELDS = {*VersionCreate.model_fields, "kind", "summary", "tags"}
_BUILTIN_REASON = "Delivered with the service"  # of the first move, as in migrations/seeds.py
_RESULTS = (GenerationStatus.ACCEPTED, GenerationStatus.REJECTED)

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

    Existing rows are unchanged. An unused built-in prompt gets the archive state and alias moves of
    the file.
    """
    return Importer(session).run(lines)


class Importer:
    """One import: maps ids and names in the file to rows of the database.

    `use_existing`: the file has no prompts and label sets; it refers to existing ones.
    """

    def __init__(self, session: Session, *, use_existing: bool = False) -> None:
        self.session = session
        self.use_existing = use_existing
        self.result = Imported()
        self.versions: dict[str, int] = {}  # content hash → id
        self.numbers: dict[
            tuple[str, int], int
        ] = {}  # prompt, number in the file → number in the database
        self.replaceable: dict[str, bool] = {}  # prompt → new, or unmodified and unused
        self.moved: set[tuple[str, str]] = set()  # (prompt, alias) whose moves are imported
        self.generations: dict[int, int] = {}  # id in the file → id in the database
        self.labels: dict[str, dict[str, int]] = {}  # label set → key → id
        if use_existing:
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
                    raise InvalidInput("this is not a file of `enrich export jsonl`")
                model = _RECORDS.get(str(kind))
                if model is None:
                    raise InvalidInput(f"unknown record {shortened(str(kind))}")
                self.import_record(model.model_validate_json(line))
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
        return self.result

    def import_record(self, record: BaseModel) -> None:
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
            self.count(self.result.releases, row.name, new)
        elif isinstance(record, GenerationRecord):
            self._generation(record)
        elif isinstance(record, ReviewRecord):
            self._review(record)

    def count(self, names: list[str], name: str, new: bool) -> None:
        """Count `name` as added or as existing."""
        if new:
            names.append(name)
        else:
            self.result.existing += 1

    def _label_set(self, record: LabelSetRecord) -> None:
        row, new = release_service.label_set_of(self.session, record.name, record.labels)
        self.count(self.result.label_sets, record.name, new)
        if new:
            label_service.set_confusable(self.session, row, record.confusable)
        self._load_labels(row)

    def _load_labels(self, label_set: LabelSet) -> None:
        self.labels[label_set.name] = {
            label.key: label.id
            for label in label_service.labels_of(self.session, label_set)
            if label.id is not None
        }

    def _version(self, record: VersionRecord) -> None:
        content = record.model_dump(include=set(VersionContent.model_fields))
        if prompt_service.content_hash(kind=record.kind, **content) != record.content_hash:
            raise InvalidInput(
                f"version {record.number} of prompt {shortened(record.prompt)} does not match its "
                "content hash: the file was changed or damaged, export it again"
            )
        prompt = self.session.exec(select(Prompt).where(Prompt.name == record.prompt)).one_or_none()
        if record.prompt not in self.replaceable:
            self.replaceable[record.prompt] = prompt is None or self._is_unmodified_builtin(prompt)
        if prompt is None:
            body = PromptCreate(name=record.prompt, **record.model_dump(include=_PROMPT_FIELDS))
            _, version = prompt_service.create(self.session, body)
            new = True
        else:
            same = [
                row
                for row in prompt_service.versions(self.session, prompt)
                if row.content_hash == record.content_hash
            ]
            new = not same
            version = (
                prompt_service.create_version(self.session, prompt, record)[0] if new else same[0]
            )
        if new:
            version.created_at = record.created_at
            self.session.add(version)
        assert version.id is not None
        self.versions[record.content_hash] = version.id
        self.numbers[record.prompt, record.number] = version.number
        self.count(self.result.prompt_versions, f"{record.prompt} {version.number}", new)

    def _archived(self, record: ArchivedRecord) -> None:
        prompt = prompt_service.get(self.session, record.prompt)
        if self.replaceable.get(record.prompt) and prompt.archived_at is None:
            prompt.archived_at = record.at
            self.session.add(prompt)
            self.session.flush()

    def _move(self, record: MoveRecord) -> None:
        prompt = prompt_service.get(self.session, record.prompt)
        if not (self.replaceable.get(record.prompt) or self._may_move(prompt, record.name)):
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

    def _is_unmodified_builtin(self, prompt: Prompt) -> bool:
        """Whether a built-in prompt is unmodified and unused."""
        log = select(AliasMove.reason).where(AliasMove.prompt_id == prompt.id)
        versions = [version.id for version in prompt_service.versions(self.session, prompt)]
        uses = (
            select(Run.id).where(col(Run.prompt_version_id).in_(versions)),
            select(Generation.id).where(col(Generation.prompt_version_id).in_(versions)),
        )
        return (
            self.session.exec(log).all() == [_BUILTIN_REASON]
            and len(versions) == 1
            and not any(self.session.exec(query.limit(1)).first() for query in uses)
        )

    def _may_move(self, prompt: Prompt, alias: str) -> bool:
        """Whether an alias does not exist yet, or was created by this import."""
        exists = select(Alias.id).where(Alias.prompt_id == prompt.id, Alias.name == alias)
        return (prompt.name, alias) in self.moved or self.session.exec(exists).first() is None

    def _alias(self, record: AliasRecord) -> None:
        prompt = prompt_service.get(self.session, record.prompt)
        version = self.versions.get(record.content_hash)
        if version is not None and self._may_move(prompt, record.name):
            # Logs nothing if an imported move did the same; older files have no moves.
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
        existing = self._existing_generation(record)
        if existing is not None:
            self.generations[record.id] = existing
            self.result.existing += 1
            return
        if record.prompt_hash is not None and record.prompt_hash not in self.versions:
            reason = "does not exist: import the prompt first"
            if not self.use_existing:
                reason = "is not in the file"
            raise InvalidInput(f"the prompt version of generation {record.id} {reason}")
        if (
            self.use_existing
            and record.label_set is not None
            and record.label_set not in self.labels
        ):
            self._load_labels(label_service.get(self.session, record.label_set))
        if record.parent_id is not None and record.parent_id not in self.generations:
            raise InvalidInput(f"generation {record.id} precedes its parent")
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
            self.result.generations += 1
        elif row.status is GenerationStatus.REJECTED:
            self.result.rejected += 1

    def _review(self, record: ReviewRecord) -> None:
        generation_id = self.generations.get(record.generation)
        if generation_id is None:
            raise InvalidInput(
                f"a review is of generation {record.generation}, which does not exist"
            )
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

    def _existing_generation(self, record: GenerationRecord) -> int | None:
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
