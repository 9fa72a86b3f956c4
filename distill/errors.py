"""The errors of the package. Each message is one line: what is wrong, and what to do about it.

DistillError
├── Interrupted          training was stopped on request; it can resume from what it has kept
├── UserError            something the user can fix; the command line prints it and exits with 1
│   ├── DataError        a missing, empty or unreadable image, class folder or label
│   │   └── UnreadableImages  images that are missing, truncated or not images; lists all of them
│   ├── TextError        a label without text, a text bank that does not fit
│   ├── ModelError       an unknown teacher or student, weights that do not load
│   ├── DeviceError      a device that this machine does not have
│   ├── CheckpointError  a damaged checkpoint, or one of another configuration
│   ├── ClassifierError  a classifier folder that is damaged, a class that cannot be added
│   │   ├── ClassExists         a class of this name, or one with nearly the same text, exists
│   │   ├── UnknownClass        no class has this name or key
│   │   ├── ClassifierChanged   another program has changed the folder since it was loaded
│   │   └── ClassifierNotSaved  the folder cannot be written
│   └── ServiceError     the enrichment service does not answer, or rejects the worker
│       ├── ServiceUnavailable  it does not answer at the moment; retry later
│       ├── RequestRefused      it rejects one request; others may be accepted
│       └── LeaseLost           the job was given to another worker, cancelled or has ended
└── (anything else is a bug)
"""

from collections.abc import Iterable, Sequence


class DistillError(Exception):
    """Base of all errors that this package raises deliberately."""


class Interrupted(DistillError):
    """Training was stopped on request; it can resume from its checkpoint or from what it names."""


class UserError(DistillError):
    """Something the user can fix."""


class DataError(UserError):
    """A missing, empty or unreadable image, class folder or label."""


class UnreadableImages(DataError):
    """Images that cannot be read. `images` lists all of them, each as a path with the reason."""

    def __init__(self, images: Sequence[str]) -> None:
        self.images = tuple(images)
        subject = "the image" if len(images) == 1 else f"{len(images)} images:"
        super().__init__(
            f"cannot read {subject} {some(images, 10, quote=False)}: replace "
            f"{'it or remove it' if len(images) == 1 else 'or remove them'}"
        )


class TextError(UserError):
    """A label without text, or a text bank that does not fit."""


class ModelError(UserError):
    """An unknown teacher or student, or weights that do not load."""


class DeviceError(UserError):
    """A device that this machine does not have."""


class CheckpointError(UserError):
    """A damaged checkpoint, or one of another configuration."""


class ClassifierError(UserError):
    """A classifier folder that is damaged or of another version, a class that cannot be added."""


class ClassExists(ClassifierError):
    """A class of this name, or one with nearly the same text, exists already."""


class UnknownClass(ClassifierError):
    """No class has this name or key."""


class ClassifierChanged(ClassifierError):
    """Another program has changed the folder since it was loaded."""


class ClassifierNotSaved(ClassifierError):
    """The folder cannot be written."""


class ServiceError(UserError):
    """The enrichment service does not answer, or rejects the worker."""


class ServiceUnavailable(ServiceError):
    """The service does not answer at the moment; the request may be retried later."""


class RequestRefused(ServiceError):
    """The service rejects one request; others may be accepted."""


class LeaseLost(ServiceError):
    """The job was given to another worker, was cancelled or has ended."""


def counted(number: int, noun: str) -> str:
    """The number with its noun: "1 class", "2,000 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def some(items: Iterable[str], count: int = 3, *, quote: bool = True) -> str:
    """The first `count` items for a one-line message, and the number of the others."""
    items = list(items)
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(repr(item) if quote else item for item in items[:count]) + more
