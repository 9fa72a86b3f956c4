"""Preparation of data sets: download layouts, checks, splits."""
