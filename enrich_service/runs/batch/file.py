"""The request file of a batch."""

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import IO

from enrich_service.runs.plan import Item


@dataclass
class BatchFile:
    """The requests of one batch, one per line."""

    response_format: str
    length_parameter: str
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    items: list[Item] = field(default_factory=list)
    size: int = 0

    def add(self, item: Item, line: bytes) -> None:
        """Add a request about `item`."""
        self.file.write(line)
        self.items.append(item)
        self.size += len(line)

    def close(self) -> None:
        """Delete the file."""
        self.file.close()

    def remove(self, keys: Collection[str]) -> None:
        """Remove the requests with these dedupe keys."""
        if not keys:
            return
        remaining = BatchFile(self.response_format, self.length_parameter)
        with self.file as lines:
            lines.seek(0)
            for item, line in zip(self.items, lines, strict=True):
                if item.key not in keys:
                    remaining.add(item, line)
        self.file, self.items, self.size = remaining.file, remaining.items, remaining.size
