"""Benchmarks of speed, compared with alternatives."""
