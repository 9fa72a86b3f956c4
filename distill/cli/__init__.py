"""The `distill` command."""

from distill.cli.main import app

__all__ = ["app"]
