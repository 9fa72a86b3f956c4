"""The connection to the enrichment service that workers and classifier servers share."""

import httpx

from distill.errors import ServiceError


def connect(
    url: str, api_key: str | None, timeout: httpx.Timeout | float
) -> tuple[httpx.Client, str]:
    """An HTTP client for the service at `url`, and the address to show in messages.

    Raises ServiceError if the address or the API key is malformed.
    """
    try:
        # A password in the address must not appear in messages.
        shown = str(httpx.URL(url).copy_with(userinfo=b"")).rstrip("/")
        is_http = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except (httpx.InvalidURL, ValueError):
        is_http = False
    if not is_http:
        raise ServiceError("the service's address must be like http://127.0.0.1:8000")
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ServiceError("the API key (ENRICH_API_KEY) has invalid characters: copy it again")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=timeout), shown


def problem_detail(response: httpx.Response) -> str:
    """The detail of a problem document on one line; without one, the HTTP status."""
    try:
        return " ".join(str(response.json()["detail"]).split())
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
