"""Data sets before training: prepared, checked, divided."""
