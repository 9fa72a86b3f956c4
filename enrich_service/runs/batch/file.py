"""A file of requests as it grows."""

import tempfile
from dataclasses import dataclass, field
from typing import IO

from enrich_service.runs.plan import Item


@dataclass
class BatchFile:
    """The requests of one batch, a line each."""

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
