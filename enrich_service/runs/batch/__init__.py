"""Runs that ask by batch: sent as files, answered within a day."""
