"""Reading job reports."""

from collections import defaultdict
from pathlib import Path

from pydantic import ValidationError
from sqlmodel import Session

from contract import Report
from enrich_service.core.errors import Conflict, NotFound
from enrich_service.jobs import artifacts, service
from enrich_service.labels import service as label_service
from enrich_service.labels.models import LabelSet
from enrich_service.labels.schemas import Confusable
from enrich_service.releases import service as release_service


def read(session: Session, folder: Path, job_id: int) -> Report:
    """The report of a job; `folder` is the artifact folder.

    Raises NotFound if there is none, Conflict if it is from another version.
    """
    artifact = artifacts.get(session, job_id, "report.json")
    try:
        return Report.model_validate_json(artifacts.location(folder, artifact.sha256).read_bytes())
    except FileNotFoundError:
        raise NotFound(
            f"The file of artifact {artifact.name!r} is missing from the artifact folder: restore "
            "it from a backup."
        ) from None
    except ValidationError as error:
        raise Conflict(
            f"The report of job {job_id} is from another version ({error.error_count()} fields "
            "differ): duplicate the job and run it again."
        ) from error


def store_confusable(session: Session, folder: Path, job_id: int) -> Confusable:
    """Store a report's confusable pairs in the label set of the job, and return them.

    Most similar first, over all text strategies. Labels without a pair are unchanged.
    """
    report = read(session, folder, job_id)
    release_id = service.get(session, job_id).release_id
    assert release_id is not None  # required for training
    release = release_service.get(session, release_id)
    label_set = session.get_one(LabelSet, release.label_set_id)
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for label in label_service.labels_of(session, label_set):
        keys[label.name].append(label.key)
    similar: defaultdict[str, dict[str, None]] = defaultdict(dict)
    pairs = [pair for bank in report.diagnostics for pair in bank.confusable if pair.a != pair.b]
    for pair in sorted(pairs, key=lambda pair: -pair.cosine):
        for a in keys[pair.a]:
            for b in keys[pair.b]:
                similar[a][b] = similar[b][a] = None
    confusable = {
        key: list(others)[: label_service.MAX_CONFUSABLE] for key, others in similar.items()
    }
    label_service.set_confusable(session, label_set, confusable)
    return Confusable(confusable=confusable)
