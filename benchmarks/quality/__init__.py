"""Accuracy and texts on real input."""
