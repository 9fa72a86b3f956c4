"""Batch runs: requests sent as files, answered within a day at half the price."""
