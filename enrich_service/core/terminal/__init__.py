"""Shared by the commands of `enrich`."""
