"""The `distill` command."""

import os

# Otherwise pydantic reads the entry points of all installed packages, which slows every start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from distill.cli.main import app

__all__ = ["app"]
