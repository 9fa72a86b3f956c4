"""A serializer for Schemathesis that writes request bodies of JSON lines."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def json_lines(_context: schemathesis.SerializationContext, value: Any) -> bytes:  # noqa: ANN401 - whatever it made up
    """`value` unchanged if it is text or bytes, else as a single JSON line."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="surrogatepass")
