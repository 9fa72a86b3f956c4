"""The errors of the service. User errors and internal errors never share a class.

ServiceError
├── UserError                 an error that the caller can fix; becomes a problem document
│   ├── InvalidInput     422  the request is invalid
│   │   └── UnreadableImage  an image for a vision model cannot be read
│   ├── Unauthorized     401  the API key is missing or invalid
│   ├── Forbidden        403  the key's scope or the request's origin is not allowed
│   ├── TooManyRequests  429  the rate limit of the key is exceeded
│   ├── NotFound         404  the object does not exist
│   │   └── NoSuch            the object is not in a list that can be printed
│   ├── Conflict         409  the request conflicts with the stored state
│   │   └── LeaseLost    409  the job was given to another worker, or has ended
│   ├── TooLarge         413  the body exceeds a limit
│   ├── Unavailable      503  a required service does not respond
│   │   └── LanguageModelError    the language model's server is unknown, failed or rejected a call
│   │       ├── ModelBusy         a retry may succeed: rate limit, server error, timeout
│   │       └── RequestRejected   the server rejects this request; a retry is pointless
│   └── StorageFull      507  the disk is full
└── (anything else is an internal error: 500)
"""


class ServiceError(Exception):
    """Base of all errors that this package raises on purpose."""


class UserError(ServiceError):
    """An error that the caller can fix. The message is one line that says what to do."""

    status = 400
    title = "Bad request"

    @property
    def headers(self) -> dict[str, str]:
        """Additional HTTP headers of the error response."""
        return {}


class InvalidInput(UserError):
    """The request is invalid."""

    status = 422
    title = "Invalid input"


class UnreadableImage(InvalidInput):
    """An image for a vision model cannot be read."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"unreadable image: {name} ({reason}): repair or remove it")


class Unauthorized(UserError):
    """The API key is missing or invalid."""

    status = 401
    title = "Unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """Authentication challenges: Bearer for programs, Basic makes browsers ask for the key."""
        return {"WWW-Authenticate": 'Bearer, Basic realm="enrich", charset="UTF-8"'}


class Forbidden(UserError):
    """The key's scope or the request's origin is not allowed."""

    status = 403
    title = "Forbidden"


class TooManyRequests(UserError):
    """The key exceeds its rate limit. `retry_after`: seconds until the next allowed request."""

    status = 429
    title = "Too many requests"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The header Retry-After."""
        return {"Retry-After": str(self.retry_after)}


class NotFound(UserError):
    """The object does not exist."""

    status = 404
    title = "Not found"


class NoSuch(NotFound):
    """The object does not exist; the message says how to list the existing ones.

    `command` follows `enrich` on the command line, `route` is the path to GET.
    """

    def __init__(self, what: str, command: str, route: str) -> None:
        super().__init__(f"There is no {what}. List them: `enrich {command}`, GET {route}.")


class Conflict(UserError):
    """The request conflicts with the stored state."""

    status = 409
    title = "Conflict"


class LeaseLost(Conflict):
    """The job was given to another worker, or has ended."""

    title = "Lease lost"


class TooLarge(UserError):
    """The body exceeds a limit."""

    status = 413
    title = "Too large"


class Unavailable(UserError):
    """A required service does not respond."""

    status = 503
    title = "Unavailable"


class LanguageModelError(Unavailable):
    """The language model's server is unknown, failed or rejected a call."""

    title = "Language model unavailable"


class ModelBusy(LanguageModelError):
    """A retry may succeed later.

    Attributes:
        calls: Number of calls made so far.
        retry_after: Seconds to wait that the server asked for; None if it did not.
        unreachable: Whether the server could not be reached at all.
    """

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


class RequestRejected(LanguageModelError):
    """The server rejects this request; others may succeed. `calls`: number of calls made."""

    def __init__(self, message: str, *, calls: int = 1) -> None:
        super().__init__(message)
        self.calls = calls


class StorageFull(UserError):
    """The disk is full."""

    status = 507
    title = "Storage full"
