"""Finds the source type of a data set from its path."""

from pathlib import Path

from distill.data.sources.coco import CocoExport, coco_files
from distill.data.sources.folders import ClassFolders, SplitFolders, has_split_folders
from distill.data.sources.hugging_face import FILES as HUGGING_FACE_FILES
from distill.data.sources.hugging_face import SCHEME, HuggingFaceDataset
from distill.data.sources.labelled_image import Source
from distill.data.sources.manifest_file import SUFFIXES as MANIFEST_SUFFIXES
from distill.data.sources.manifest_file import ManifestFile
from distill.data.sources.webdataset import Shards, shard_paths
from distill.data.sources.yolo import SUFFIXES as YOLO_SUFFIXES
from distill.data.sources.yolo import YoloExport, data_file
from distill.errors import DataError

KINDS = (
    "a folder of class folders, a folder with train/, a .csv, .tsv, .jsonl or .parquet file, "
    "WebDataset shards (.tar), a COCO export (.json), a YOLO export (with data.yaml), or a Hugging "
    "Face dataset (a folder, or hf:ORGANISATION/NAME)"
)


def find_source(data: str | Path) -> Source:
    """The source at `data`, which may be any of KINDS.

    Raises:
        DataError: `data` does not exist, or is not a data set.
    """
    if str(data).startswith(SCHEME):
        return HuggingFaceDataset(str(data))
    path = Path(data)
    if path.is_dir():
        return _source_of_folder(path)
    if not path.is_file():
        raise DataError(f"there is no data set {path}: correct the path, or create it")
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return ManifestFile(path)
    if path.suffix.lower() == ".tar":
        return Shards((path,))
    if path.suffix.lower() == ".json":
        return CocoExport((path,), names_splits=False)
    if path.suffix.lower() in YOLO_SUFFIXES:
        return YoloExport(path)
    raise DataError(f"{path} is not a data set: give {KINDS}")


def _source_of_folder(path: Path) -> Source:
    if any((path / name).is_file() for name in HUGGING_FACE_FILES):
        return HuggingFaceDataset(str(path))
    if described := data_file(path):
        return YoloExport(described)
    if annotations := coco_files(path):
        return CocoExport(annotations, names_splits=True)
    if shards := shard_paths(path):
        return Shards(shards)
    return SplitFolders(path) if has_split_folders(path) else ClassFolders(path)


def base_folder(data: str | Path) -> Path:
    """The folder that other paths of a configuration are relative to: `data` or its parent."""
    path = Path(data)
    return path.parent if path.is_file() else path
