"""Follows an alias of the student registry of an enrichment service.

client    resolves an alias, and downloads classifiers
cache     unpacks classifiers into folders, and remembers the last version served
follower  polls the alias, and loads new versions
"""
