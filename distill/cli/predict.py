"""`distill predict`: photos to classes, by a classifier folder. Imports no torch."""
