"""A worker's training on a Ray cluster."""
