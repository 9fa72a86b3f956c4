"""The errors of the service. A user's mistake and a broken invariant never share a class.

ServiceError
├── UserError                 something that the caller can mend; becomes a problem document
│   ├── InvalidInput     422  the request cannot be understood or makes no sense
│   │   └── UnreadableImage  an image that a vision model was to see cannot be read
│   ├── Unauthorized     401  it comes without a key, or with one that opens nothing
│   ├── Forbidden        403  its key does not open this, or it may not come from there
│   ├── TooManyRequests  429  its key has asked too often
│   ├── NotFound         404  the thing named does not exist
│   │   └── NoSuch            it is not one of those that can be listed
│   ├── Conflict         409  it does not fit what is there already
│   │   └── LeaseLost    409  the job was given to another worker, or has ended
│   ├── TooLarge         413  more bytes than are taken
│   ├── Unavailable      503  a part that the request needs does not answer
│   │   └── LanguageModelError    the language model's server refuses, fails or is unknown
│   │       ├── ModelBusy         it may answer later: rate limit, fault, timeout
│   │       └── QuestionRefused   it will not answer this one question
│   └── StorageFull      507  the disk is full
└── (anything else is a defect and answers 500)
"""


class ServiceError(Exception):
    """Base of all errors that this package raises on purpose."""


class UserError(ServiceError):
    """Something the caller can mend. The message is one line that says what to do."""

    status = 400
    title = "Bad request"

    @property
    def headers(self) -> dict[str, str]:
        """What an answer that tells of this error says besides."""
        return {}


class InvalidInput(UserError):
    """The request cannot be understood or makes no sense."""

    status = 422
    title = "Invalid input"


class UnreadableImage(InvalidInput):
    """An image that a vision model was to see cannot be read."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"unreadable image: {name} ({reason}): mend or remove it")


class Unauthorized(UserError):
    """The request comes without a key, or with one that opens nothing."""

    status = 401
    title = "Unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """Programs send the key as Bearer; a browser asks a person for it by itself."""
        return {"WWW-Authenticate": 'Bearer, Basic realm="enrich", charset="UTF-8"'}


class Forbidden(UserError):
    """The key does not open this, or the request may not come from there."""

    status = 403
    title = "Forbidden"


class TooManyRequests(UserError):
    """The key has asked too often. `retry_after`: seconds until the next request is let through."""

    status = 429
    title = "Too many requests"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """When to come again."""
        return {"Retry-After": str(self.retry_after)}


class NotFound(UserError):
    """The thing named does not exist."""

    status = 404
    title = "Not found"


class NoSuch(NotFound):
    """What was named is not one of its kind, of which there is a list.

    `command` is what follows `enrich` to print that list, `route` what to GET: this may answer a
    person who types as well as a program.
    """

    def __init__(self, what: str, command: str, route: str) -> None:
        super().__init__(f"There is no {what}. List them: `enrich {command}`, GET {route}.")


class Conflict(UserError):
    """The request does not fit what is there already."""

    status = 409
    title = "Conflict"


class LeaseLost(Conflict):
    """The job was given to another worker, or has ended."""

    title = "Lease lost"


class TooLarge(UserError):
    """More bytes than are taken."""

    status = 413
    title = "Too large"


class Unavailable(UserError):
    """A part that the request needs does not answer."""

    status = 503
    title = "Unavailable"


class LanguageModelError(Unavailable):
    """The language model's server refuses, fails or is unknown."""

    title = "Language model unavailable"


class ModelBusy(LanguageModelError):
    """The server may answer later. `retry_after`: seconds it asked to wait; `calls`: spent."""

    def __init__(
        self,
        message: str,
        *,
        calls: int = 1,
        retry_after: float | None = None,
        unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.calls = calls
        self.retry_after = retry_after
        self.unreachable = unreachable


class QuestionRefused(LanguageModelError):
    """The server will not answer this one question. `calls`: spent on asking."""

    def __init__(self, message: str, *, calls: int = 1) -> None:
        super().__init__(message)
        self.calls = calls


class StorageFull(UserError):
    """The disk is full."""

    status = 507
    title = "Storage full"
