"""Benchmarks of accuracy on real input."""
