"""Label sets: validated as a whole, stored as a whole. They may grow; a label never changes.

Which labels are easily confused can be changed: by hand, from the diagnostics of a training job, or
guessed from the names.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, delete, func, select

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
MAX_NAME = 300  # characters, also of a context
MAX_KEY = 255  # characters; a key names a folder
MAX_CONFUSABLE = 20  # for one label
NEAREST = 5  # derived from names, for one label
_NAMES_OR_LABELS = TypeAdapter[list[str] | list[LabelIn]](list[str] | list[LabelIn])


def create(
    session: Session, name: str, labels: Iterable[LabelIn], places: Sequence[str] = ()
) -> LabelSet:
    """Create a label set. `places`: the origin of each label, such as "Line 3" of a file.

    Raises:
        InvalidInput: labels are invalid; all of them are named.
        Conflict: a label set of this name exists.
    """
    check_name("The label set's name", name)
    rows = _checked(labels, places)
    if session.exec(select(LabelSet.id).where(LabelSet.name == name)).one_or_none() is not None:
        raise Conflict(f"There is a label set {name!r} already: choose another name.")
    label_set = LabelSet(name=name)
    session.add(label_set)
    session.flush()
    session.execute(insert(Label), [{"label_set_id": label_set.id, **row} for row in rows])
    return label_set


def extend(session: Session, label_set: LabelSet, labels: Iterable[LabelIn]) -> None:
    """Append `labels` to `label_set`.

    Raises:
        InvalidInput: labels are invalid, or their keys exist; all are named.
    """
    known = {line.key: f"the label {line.name!r}" for line in lines_of(session, label_set)}
    rows = _checked(labels, (), known)
    session.execute(insert(Label), [{"label_set_id": label_set.id, **row} for row in rows])


def _checked(
    labels: Iterable[LabelIn], places: Sequence[str], known: Mapping[str, str] | None = None
) -> list[dict[str, object]]:
    """The rows of labels; `known` maps existing keys to their origin."""
    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    known = dict(known or {})
    first = len(known)
    for number, label in enumerate(labels):
        if first + number >= MAX_LABELS:
            raise InvalidInput(f"A label set has at most {MAX_LABELS} labels: split it")
        place = places[number] if places else f"Label {number + 1}"
        try:
            row = _row(label, place.lower(), known)
        except InvalidInput as error:
            wrong.append(str(error))
            continue
        known[str(row["key"])] = place.lower()
        rows.append({"position": first + len(rows), **row})
    if wrong:
        raise files.problems(wrong)
    if not rows:
        raise InvalidInput("A label set needs at least one label")
    return rows


def _row(label: LabelIn, place: str, known: Mapping[str, str]) -> dict[str, object]:
    """The validated fields of a label; `known` maps earlier keys to their origin."""
    name = check_line(f"The name of {place}", label.name, limit=MAX_NAME)
    key = name.replace(" ", "_").replace("/", "_") if label.key is None else label.key
    key = check_line(f"The key of {place}", key, limit=MAX_KEY)
    if "/" in key or "\\" in key or key in (".", ".."):
        raise InvalidInput(
            f"{place.capitalize()}: the key {shortened(key)} is not a valid folder name"
        )
    if key in known:
        raise InvalidInput(
            f"{place.capitalize()} has the key {shortened(key)} of {known[key]}: keys are unique"
        )
    context = label.context.strip() if label.context else None
    if context:
        check_line(f"The context of {place}", context, limit=MAX_NAME)
    return {"key": key, "name": name, "context": context or None}


def from_json(data: bytes) -> list[LabelIn]:
    """Labels of a JSON file: a list of names, or of objects with name, key and context."""
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
    """Labels of the paper's label2text.txt: lines `key index name_with_underscores`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"Cannot read {path}: {error}") from error
    return parse_label2text(lines, path.name)


def parse_label2text(lines: Sequence[str], source: str = "label2text.txt") -> list[LabelIn]:
    """Labels of lines `key index name_with_underscores`; blank lines are skipped."""
    labels, wrong = [], []
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if len(parts) == 3 and parts[1].isdigit():
            labels.append(LabelIn(key=parts[0], name=parts[2].replace("_", " ").strip()))
        elif parts:
            wrong.append(
                f"Line {number} of {source} is not `key index name_with_underscores`: "
                f"{shortened(line)}"
            )
    if wrong:
        raise files.problems(wrong)
    return labels


def from_folders(folders: Sequence[Path], label2text: Path | None = None) -> list[LabelIn]:
    """One label per class folder in any of `folders`, named by `label2text` or after the folder."""
    keys: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInput(f"There is no folder {folder}")
        own = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."]
        if not own:
            raise InvalidInput(f"{folder} has no class folders")
        keys |= set(own)
    if label2text is None:
        return [LabelIn(key=key, name=key.replace("_", " ")) for key in sorted(keys)]
    known = {label.key: label for label in read_label2text(label2text)}
    if missing := sorted(keys - known.keys()):
        raise InvalidInput(
            f"{label2text} has no line for {len(missing)} class folders, first {missing[0]!r}"
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
    """All labels of `label_set` as plain rows, in order; ten times faster than `labels_of`."""
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
    wanted = [col(Label.label_set_id) == label_set.id]
    if search:
        wanted.append(
            col(Label.name).icontains(search, autoescape=True)
            | col(Label.key).icontains(search, autoescape=True)
        )
    total = session.exec(select(func.count()).select_from(Label).where(*wanted)).one()
    labels = session.exec(
        select(Label).where(*wanted).order_by(col(Label.position)).limit(limit).offset(offset)
    ).all()
    after = offset + len(labels)
    return LabelPage(
        items=[
            LabelView(**label.model_dump(), confusable=[other.key for other in near])
            for label, near in zip(labels, confusable_of(session, labels), strict=True)
        ],
        total=total,
        next_offset=after if after < total and labels else None,
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
    """Set the keys of the labels that each given label is most easily confused with.

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
        for named in (key, *others):
            if named not in ids:
                raise InvalidInput(
                    f"Label set {label_set.name!r} has no label with the key {shortened(named)}"
                )
        if key in others or len(set(others)) < len(others):
            raise InvalidInput(
                f"Label {shortened(key)}: name each confusable label once, and not itself"
            )
        rows += [
            {"label_id": ids[key], "rank": rank, "other_id": ids[other]}
            for rank, other in enumerate(others)
        ]
    given = [ids[key] for key in confusable]
    for start in range(0, len(given), 500):
        some = given[start : start + 500]
        session.execute(delete(ConfusableLabel).where(col(ConfusableLabel.label_id).in_(some)))
    if rows:
        session.execute(insert(ConfusableLabel), rows)


def confusable_by_name(labels: Sequence[Label]) -> dict[str, list[str]]:
    """For each label, the keys of up to `NEAREST` labels whose names end in the same words.

    The last word of an English name is usually the kind of object ("common teal", "cinnamon
    teal"), and objects of one kind look alike. Labels that share more words come first. Labels
    without a match are left out.
    """
    backwards = {label.key: label.name.casefold().split()[::-1] for label in labels}
    order = sorted(backwards, key=lambda key: (backwards[key], key))
    confusable: dict[str, list[str]] = {}
    for position, key in enumerate(order):
        around = (
            order[max(0, position - NEAREST) : position]
            + order[position + 1 : position + 1 + NEAREST]
        )
        shared = {
            other: _common_start(backwards[key], backwards[other])
            for other in around
            if backwards[other] != backwards[key]
        }
        near = sorted((other for other in shared if shared[other]), key=lambda o: (-shared[o], o))
        if near:
            confusable[key] = near[:NEAREST]
    return confusable


def guess_confusable(session: Session, label_set: LabelSet) -> Confusable:
    """Store `confusable_by_name` for the labels without confusable labels, and return it."""
    labels = labels_of(session, label_set)
    known = {
        label.key
        for label, near in zip(labels, confusable_of(session, labels), strict=True)
        if near
    }
    guessed = {key: near for key, near in confusable_by_name(labels).items() if key not in known}
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
