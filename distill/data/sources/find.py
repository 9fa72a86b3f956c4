"""Which source a data set is, told from its path."""

from pathlib import Path

from distill.data.sources.folders import ClassFolders, SplitFolders, has_split_folders
from distill.data.sources.labelled_image import Source
from distill.errors import DataError


def find_source(data: str | Path) -> Source:
    """The source that `data` names.

    Raises:
        DataError: there is nothing, or nothing that is a data set.
    """
    path = Path(data)
    if path.is_dir():
        return SplitFolders(path) if has_split_folders(path) else ClassFolders(path)
    raise DataError(f"there is no data folder {path}: correct the path, or create it")
