"""Distillation worker: a release of class texts in, a trained student and a report out."""
