"""The caller of a request and its permissions."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Permissions of a key; each scope includes those before it."""

    READ = "read"  # read everything
    WRITE = "write"  # also change data, call language models, act as a worker
    ADMIN = "admin"  # also create and revoke keys, read the audit log

    def includes(self, other: "Scope") -> bool:
        """Whether this scope includes `other`."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Caller:
    """The caller of a request; `key_id` is None while the service has no keys."""

    key_id: int | None
    name: str
    scope: Scope


NOBODY = Caller(None, "(no key)", Scope.ADMIN)
