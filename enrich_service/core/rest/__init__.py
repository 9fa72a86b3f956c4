"""Shared by all routes of the REST interface."""
