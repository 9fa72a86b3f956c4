"""What a model is worth: accuracy, diagnostics, explanations, the report."""
