"""The `distill` command."""

import os

# Else pydantic reads the entry points of all installed packages: an eighth of a command's start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from distill.cli.main import app

__all__ = ["app"]
