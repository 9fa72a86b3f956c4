"""The errors of the worker. Each message is one line that names the thing and the remedy.

DistillError
├── UserError            something the user can mend; the command line prints it and exits with 1
│   ├── DataError        a missing, empty or unreadable image, class folder or label
│   ├── TextError        a label without text, a text bank that does not fit
│   ├── ModelError       an unknown teacher or student, weights that do not load
│   ├── CheckpointError  a checkpoint that is cut off, or of another configuration
│   └── ServiceError     the enrichment service does not answer, or refuses
│       └── LeaseLost    the job was given to another worker, cancelled or has ended
└── (anything else is a defect)
"""


class DistillError(Exception):
    """Base of all errors that this package raises on purpose."""


class UserError(DistillError):
    """Something the user can mend."""


class DataError(UserError):
    """A missing, empty or unreadable image, class folder or label."""


class TextError(UserError):
    """A label without text, or a text bank that does not fit."""


class ModelError(UserError):
    """An unknown teacher or student, or weights that do not load."""


class CheckpointError(UserError):
    """A checkpoint that is cut off, or of another configuration."""


class ServiceError(UserError):
    """The enrichment service does not answer, or refuses."""


class LeaseLost(ServiceError):
    """The job was given to another worker, was cancelled or has ended."""
