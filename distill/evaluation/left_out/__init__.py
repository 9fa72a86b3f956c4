"""Choices made on seen classes that are left out, in place of unseen ones."""
