"""The manifest of a release: the provenance of its texts, and the prompts used."""

import hashlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError
from sqlmodel import Session, select

from contract import Release, first_error_line
from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.exchange import class_lists, csv_files, jsonl_export, jsonl_import, text_pairs
from enrich_service.exchange.schemas import Imported, Manifest, ModelUse
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.releases import service as release_service

MANIFEST, RELEASE = "manifest.json", "release.json"


def manifest(session: Session, release: Release) -> Manifest:
    """Create the manifest: texts by source and model, and the prompt versions."""
    hashes = dict.fromkeys(source.prompt_hash for source in release.sources if source.prompt_hash)
    names = {(source.prompt, source.prompt_version) for source in release.sources if source.prompt}
    prompts = [
        jsonl_export.version_record(session, prompt, prompt_version)
        for digest in hashes
        for prompt, prompt_version in session.exec(
            select(Prompt, PromptVersion)
            .where(PromptVersion.prompt_id == Prompt.id, PromptVersion.content_hash == digest)
            .order_by(Prompt.name, PromptVersion.number)  # type: ignore[arg-type]
        )
        if (prompt.name, prompt_version.number) in names
    ]
    models = Counter((source.requested_model, source.resolved_model) for source in release.sources)
    return Manifest(
        release=release.name,
        hash=release.hash,
        label_set=release.label_set,
        labels=len(release.labels),
        message=release.message,
        author=release.author,
        created_at=release.created_at,
        texts=dict(Counter(f"{source.field} by {source.source}" for source in release.sources)),
        models=[
            ModelUse(requested=requested, resolved=resolved, texts=count)
            for (requested, resolved), count in models.items()
            if requested
        ],
        prompts=prompts,
        service_version=version("enrich-distill"),
    )


def write_folder(session: Session, release: Release, folder: Path) -> Manifest:
    """Write a release in every format, with a manifest that contains the SHA-256 of each file.

    Raises Conflict if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"The folder {folder} is not empty: choose a new one.")
    files = {
        RELEASE: release.model_dump_json() + "\n",
        "release.csv": "".join(csv_files.release_csv(release)),
        "label2text.txt": text_pairs.label2text(release),
        "chatgpt.txt": text_pairs.descriptions(release),
    }
    if len({label.name for label in release.labels}) == len(release.labels):
        files["descriptors.json"] = class_lists.to_json(class_lists.descriptors(release))
        files["sentences.json"] = class_lists.to_json(class_lists.sentences(release))
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    result = manifest(session, release).model_copy(update={"files": digests})
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8", newline="")
    (folder / MANIFEST).write_text(result.model_dump_json(indent=2) + "\n", "utf-8", newline="")
    return result


def read_folder(session: Session, folder: Path) -> Imported:
    """Import a folder of `write_folder`: the prompts of the manifest, and the release.

    Raises InvalidInput if a file is missing or does not match its hash in the manifest.
    """
    try:
        found = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        for name, digest in found.files.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise InvalidInput(
                    f"{folder / name} does not match its hash in {MANIFEST}: export the folder "
                    "again"
                )
        release = Release.model_validate_json((folder / RELEASE).read_bytes())
    except OSError as error:
        raise InvalidInput(f"Cannot read {error.filename}: {error.strerror}") from error
    except ValidationError as error:
        raise InvalidInput(f"{folder}: {first_error_line(error, '')}") from error
    if release.hash != found.hash:
        raise InvalidInput(
            f"{MANIFEST} and {RELEASE} in {folder} are of two releases: export the folder again"
        )
    importer = jsonl_import.Importer(session)
    for record in found.prompts:
        importer.import_record(record)
    row, new = release_service.import_release(session, release)
    importer.count(importer.result.releases, row.name, new)
    return importer.result
