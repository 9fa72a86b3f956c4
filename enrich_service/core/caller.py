"""Who makes a request, and how much it may do."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key opens; each includes those before it."""

    READ = "read"  # look at everything
    WRITE = "write"  # and change it, spend money on language models, work as a worker
    ADMIN = "admin"  # and make and revoke keys, read the audit log

    def includes(self, other: "Scope") -> bool:
        """Whether this scope is enough for what needs `other`."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Caller:
    """Whoever makes a request; `key_id` is None while the service has no keys."""

    key_id: int | None
    name: str
    scope: Scope


NOBODY = Caller(None, "(no key)", Scope.ADMIN)
