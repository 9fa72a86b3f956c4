"""Follows an alias of the student registry of an enrichment service.

client    asks where an alias points, and downloads the classifier
cache     unpacks classifiers into folders, and remembers the last one
follower  polls, loads a new version and swaps it in
"""
