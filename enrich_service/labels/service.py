"""Label sets: validated and stored as a whole. They can be extended; a label never changes.

Which labels are easily confused can be changed: by hand, from the diagnostics of a training job, or
derived from the names.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, delete, func, select

from contract import is_hidden
from enrich_service.core import spreadsheet
from enrich_service.core.errors import Conflict, InvalidInput, NoSuch, NotFound
from enrich_service.core.text import check_line, check_name, shortened
from enrich_service.labels import files
from enrich_service.labels.models import ConfusableLabel, Label, LabelLine, LabelSet
from enrich_service.labels.schemas import (
    Confusable,
    LabelIn,
    LabelPage,
    LabelSetView,
    LabelView,
)

MAX_LABELS = 100_000
MAX_NAME = 300  # characters of a name or context
MAX_KEY = 255  # characters; a key names a folder
MAX_CONFUSABLE = 20  # for one label
NEAREST = 5  # confusable labels derived from names, for one label
_NAMES_OR_LABELS = TypeAdapter[list[str] | list[LabelIn]](list[str] | list[LabelIn])


def create(
    session: Session,
    name: str,
    labels: Iterable[LabelIn],
    origins: Sequence[str] = (),
    errors: Sequence[str] = (),
) -> LabelSet:
    """Create a label set.

    `origins`: where each label comes from, for messages, such as "Line 3". Default: its number.
    `errors`: what is wrong with lines that gave no label; listed with the errors of the labels.

    Raises:
        InvalidInput: labels are invalid; the message lists them.
        Conflict: a label set of this name exists.
    """
    check_name("The label set's name", name)
    rows = _checked(labels, origins, errors=errors)
    if session.exec(select(LabelSet.id).where(LabelSet.name == name)).one_or_none() is not None:
        raise Conflict(f"Label set {name!r} already exists: choose another name.")
    label_set = LabelSet(name=name)
    session.add(label_set)
    session.flush()
    session.execute(insert(Label), [{"label_set_id": label_set.id, **row} for row in rows])
    return label_set


def extend(session: Session, label_set: LabelSet, labels: Iterable[LabelIn]) -> None:
    """Append `labels` to `label_set`.

    Raises:
        InvalidInput: labels are invalid, or their keys exist; the message lists them.
    """
    known = {line.key: f"the label {line.name!r}" for line in lines_of(session, label_set)}
    rows = _checked(labels, (), known)
    session.execute(insert(Label), [{"label_set_id": label_set.id, **row} for row in rows])


def _checked(
    labels: Iterable[LabelIn],
    origins: Sequence[str],
    known: Mapping[str, str] | None = None,
    errors: Sequence[str] = (),
) -> list[dict[str, object]]:
    """The table rows of `labels`; `known`: existing key → what has it, for messages.

    Raises InvalidInput with `errors` and those of the labels.
    """
    rows: list[dict[str, object]] = []
    errors = list(errors)
    known = dict(known or {})
    first = len(known)
    for number, label in enumerate(labels):
        if first + number >= MAX_LABELS:
            raise InvalidInput(f"A label set has at most {MAX_LABELS} labels: split it")
        origin = origins[number] if origins else f"Label {number + 1}"
        try:
            row = _row(label, origin.lower(), known)
        except InvalidInput as error:
            errors.append(str(error))
            continue
        known[str(row["key"])] = origin.lower()
        rows.append({"position": first + len(rows), **row})
    if errors:
        raise files.problems(errors)
    if not rows:
        raise InvalidInput("A label set needs at least one label")
    return rows


def _row(label: LabelIn, origin: str, known: Mapping[str, str]) -> dict[str, object]:
    """The validated fields of a label; `known`: earlier key → what has it, for messages."""
    name = check_line(f"The name of {origin}", label.name, limit=MAX_NAME)
    key = name.replace(" ", "_").replace("/", "_") if label.key is None else label.key
    key = check_line(f"The key of {origin}", key, limit=MAX_KEY)
    if "/" in key or "\\" in key or key in (".", ".."):
        raise InvalidInput(
            f"{origin.capitalize()}: the key {shortened(key)} is not a valid folder name"
        )
    if key in known:
        raise InvalidInput(
            f"{origin.capitalize()} has the key {shortened(key)} of {known[key]}: keys are unique"
        )
    context = label.context.strip() if label.context else None
    if context:
        check_line(f"The context of {origin}", context, limit=MAX_NAME)
    return {"key": key, "name": name, "context": context or None}


def from_json(data: bytes) -> list[LabelIn]:
    """Parse a JSON file: a list of names, or of objects with name, key and context."""
    try:
        items = _NAMES_OR_LABELS.validate_json(data)
    except ValidationError as error:
        raise InvalidInput(
            f"The JSON file is not a label list ({error.errors(include_url=False)[-1]['msg']}): "
            'write ["teal", …] or [{"name": "teal", "key": "n1", "context": "a bird"}, …]'
        ) from None
    return [LabelIn(name=item) if isinstance(item, str) else item for item in items]


def to_csv(session: Session, label_set: LabelSet) -> Iterator[str]:
    """The labels of `label_set` as lines of CSV, for `files.from_table`."""
    rows = ((label.key, label.name, label.context) for label in labels_of(session, label_set))
    return spreadsheet.write(files.COLUMNS, rows)


def read_label2text(path: Path) -> list[LabelIn]:
    """Read the paper's label2text.txt: lines `key index name_with_underscores`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"Cannot read {path}: {error}") from error
    return parse_label2text(lines, path.name)


def parse_label2text(lines: Sequence[str], source: str = "label2text.txt") -> list[LabelIn]:
    """Parse lines `key index name_with_underscores`; blank lines are skipped."""
    labels, errors = [], []
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if len(parts) == 3 and parts[1].isdigit():
            labels.append(LabelIn(key=parts[0], name=parts[2].replace("_", " ").strip()))
        elif parts:
            errors.append(
                f"Line {number} of {source} is not `key index name_with_underscores`: "
                f"{shortened(line)}"
            )
    if errors:
        raise files.problems(errors)
    return labels


def from_folders(folders: Sequence[Path], label2text: Path | None = None) -> list[LabelIn]:
    """One label per class folder in any of `folders`, named by `label2text` or after the folder."""
    keys: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInput(f"There is no folder {folder}")
        classes = {
            entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)
        }
        if not classes:
            raise InvalidInput(f"{folder} has no class folders: give a folder with one per class")
        keys |= classes
    if label2text is None:
        return [LabelIn(key=key, name=key.replace("_", " ")) for key in sorted(keys)]
    known = {label.key: label for label in read_label2text(label2text)}
    if missing := sorted(keys - known.keys()):
        raise InvalidInput(
            f"{label2text} has no line for {len(missing)} class folders, e.g. {missing[0]!r}: "
            "add them"
        )
    return [known[key] for key in sorted(keys)]


def get(session: Session, name: str) -> LabelSet:
    """The label set with this name. Raises NotFound."""
    label_set = session.exec(select(LabelSet).where(LabelSet.name == name)).one_or_none()
    if label_set is None:
        raise NoSuch(f"label set {shortened(name)}", "labels list", "/v1/label-sets")
    return label_set


def label(session: Session, label_id: int) -> tuple[Label, LabelSet]:
    """The label with this id and its label set. Raises NotFound."""
    label = session.get(Label, label_id)
    if label is None:
        raise NotFound(f"There is no label {label_id}. List ids: GET /v1/label-sets/NAME/labels.")
    return label, session.get_one(LabelSet, label.label_set_id)


def labels_of(session: Session, label_set: LabelSet) -> Sequence[Label]:
    """All labels of `label_set`, in order."""
    return session.exec(
        select(Label).where(Label.label_set_id == label_set.id).order_by(col(Label.position))
    ).all()


def lines_of(session: Session, label_set: LabelSet) -> list[LabelLine]:
    """All labels of `label_set` as plain tuples, in order; ten times faster than `labels_of`."""
    rows = session.exec(
        select(Label.id, Label.key, Label.name, Label.context)
        .where(Label.label_set_id == label_set.id)
        .order_by(col(Label.position))
    )
    return [LabelLine(*row) for row in rows]


def view(session: Session, label_set: LabelSet) -> LabelSetView:
    """The API schema of `label_set`."""
    total = session.exec(
        select(func.count()).select_from(Label).where(Label.label_set_id == label_set.id)
    ).one()
    return LabelSetView(name=label_set.name, labels=total, created_at=label_set.created_at)


def listing(session: Session, *, limit: int | None = 100, offset: int = 0) -> list[LabelSetView]:
    """Label sets by name."""
    label_sets = session.exec(select(LabelSet).order_by(LabelSet.name).limit(limit).offset(offset))
    return [view(session, label_set) for label_set in label_sets.all()]


def page(
    session: Session,
    label_set: LabelSet,
    *,
    search: str = "",
    limit: int | None = 100,
    offset: int = 0,
) -> LabelPage:
    """One page of the labels whose name or key contains `search`."""
    conditions = [col(Label.label_set_id) == label_set.id]
    if search:
        conditions.append(
            col(Label.name).icontains(search, autoescape=True)
            | col(Label.key).icontains(search, autoescape=True)
        )
    total = session.exec(select(func.count()).select_from(Label).where(*conditions)).one()
    labels = session.exec(
        select(Label).where(*conditions).order_by(col(Label.position)).limit(limit).offset(offset)
    ).all()
    next_offset = offset + len(labels)
    return LabelPage(
        items=[
            LabelView(**label.model_dump(), confusable=[other.key for other in near])
            for label, near in zip(labels, confusable_of(session, labels), strict=True)
        ],
        total=total,
        next_offset=next_offset if next_offset < total and labels else None,
    )


def confusable_of(session: Session, labels: Sequence[Label | LabelLine]) -> list[list[Label]]:
    """The confusable labels of each of `labels`, most similar first."""
    near: dict[int | None, list[Label]] = {label.id: [] for label in labels}
    ids = list(near)
    for start in range(0, len(ids), 500):
        for label_id, other in session.exec(
            select(ConfusableLabel.label_id, Label)
            .join(Label, col(Label.id) == col(ConfusableLabel.other_id))
            .where(col(ConfusableLabel.label_id).in_(ids[start : start + 500]))
            .order_by(col(ConfusableLabel.label_id), col(ConfusableLabel.rank))
        ):
            near[label_id].append(other)
    return [near[label.id] for label in labels]


def set_confusable(
    session: Session, label_set: LabelSet, confusable: Mapping[str, Sequence[str]]
) -> None:
    """Set the labels that each given label is easily confused with, by key, most similar first.

    Replaces the lists of the given labels only. Raises InvalidInput for an unknown key.
    """
    ids = {label.key: label.id for label in labels_of(session, label_set)}
    rows = []
    for key, others in confusable.items():
        if len(others) > MAX_CONFUSABLE:
            raise InvalidInput(
                f"Label {shortened(key)} has {len(others)} confusable labels; at most "
                f"{MAX_CONFUSABLE} are allowed: give the most similar"
            )
        for used in (key, *others):
            if used not in ids:
                raise InvalidInput(
                    f"Label set {label_set.name!r} has no label with the key {shortened(used)}"
                )
        if key in others or len(set(others)) < len(others):
            raise InvalidInput(
                f"Label {shortened(key)}: list each confusable label once, and not the label itself"
            )
        rows += [
            {"label_id": ids[key], "rank": rank, "other_id": ids[other]}
            for rank, other in enumerate(others)
        ]
    label_ids = [ids[key] for key in confusable]
    for start in range(0, len(label_ids), 500):
        chunk = label_ids[start : start + 500]
        session.execute(delete(ConfusableLabel).where(col(ConfusableLabel.label_id).in_(chunk)))
    if rows:
        session.execute(insert(ConfusableLabel), rows)


def confusable_by_name(labels: Sequence[Label]) -> dict[str, list[str]]:
    """For each label, the keys of up to `NEAREST` labels whose names end in the same words.

    The last word of an English name is usually the kind of object ("common teal", "cinnamon
    teal"), and objects of one kind look alike. Labels that share more words come first. Labels
    without a match are left out.
    """
    reversed_words = {label.key: label.name.casefold().split()[::-1] for label in labels}
    sorted_keys = sorted(reversed_words, key=lambda key: (reversed_words[key], key))
    confusable: dict[str, list[str]] = {}
    for position, key in enumerate(sorted_keys):
        neighbours = (
            sorted_keys[max(0, position - NEAREST) : position]
            + sorted_keys[position + 1 : position + 1 + NEAREST]
        )
        common_words = {
            other: _common_start(reversed_words[key], reversed_words[other])
            for other in neighbours
            if reversed_words[other] != reversed_words[key]
        }
        similar = sorted(
            (other for other in common_words if common_words[other]),
            key=lambda o: (-common_words[o], o),
        )
        if similar:
            confusable[key] = similar[:NEAREST]
    return confusable


def guess_confusable(session: Session, label_set: LabelSet) -> Confusable:
    """Store `confusable_by_name` for the labels without confusable labels, and return it."""
    labels = labels_of(session, label_set)
    known = {
        label.key
        for label, similar in zip(labels, confusable_of(session, labels), strict=True)
        if similar
    }
    guessed = {
        key: similar for key, similar in confusable_by_name(labels).items() if key not in known
    }
    set_confusable(session, label_set, guessed)
    return Confusable(confusable=guessed)


def _common_start(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the common prefix of two sequences."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def remove(session: Session, label_set: LabelSet) -> None:
    """Delete `label_set` with its labels. Raises Conflict if it is used."""
    name = label_set.name
    own = select(Label.id).where(Label.label_set_id == label_set.id)
    try:
        session.execute(delete(ConfusableLabel).where(col(ConfusableLabel.label_id).in_(own)))
        session.execute(delete(Label).where(col(Label.label_set_id) == label_set.id))
        session.delete(label_set)
        session.flush()
    except IntegrityError as error:
        raise Conflict(
            f"Label set {name!r} is used by runs, texts or releases and cannot be deleted."
        ) from error
