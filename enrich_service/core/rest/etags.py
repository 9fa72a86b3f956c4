"""Conditional requests."""


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Whether the header If-None-Match of a request contains `etag` (given without quotes)."""
    known = {tag.strip().removeprefix("W/").strip('"') for tag in (if_none_match or "").split(",")}
    return not known.isdisjoint({etag, "*"})
