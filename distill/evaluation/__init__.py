"""Evaluation: accuracy, calibration, diagnostics, explanations, the report."""
