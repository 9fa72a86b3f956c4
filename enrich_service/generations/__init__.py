"""Texts by language models and people: tables, store, reviews."""
