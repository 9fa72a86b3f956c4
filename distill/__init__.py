"""Distillation: trains a student from a release of class texts, and writes a report."""
