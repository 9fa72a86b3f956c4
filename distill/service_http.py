"""The connection to the enrichment service that workers and classifier servers share."""

import httpx

from distill.errors import ServiceError


def connect(
    url: str, api_key: str | None, timeout: httpx.Timeout | float
) -> tuple[httpx.Client, str]:
    """A client of the service at `url`, and the address to show in messages.

    Raises ServiceError for an address or an API key that cannot be one.
    """
    try:
        # A password in the address is for the connection alone, not for messages.
        shown = str(httpx.URL(url).copy_with(userinfo=b"")).rstrip("/")
        is_http = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except (httpx.InvalidURL, ValueError):
        is_http = False
    if not is_http:
        raise ServiceError("the service's address must be like http://127.0.0.1:8000")
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ServiceError("the API key (ENRICH_API_KEY) has characters that no key has")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=timeout), shown


def problem_detail(response: httpx.Response) -> str:
    """The detail of a problem document on one line, or at least the status."""
    try:
        return " ".join(str(response.json()["detail"]).split())
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
