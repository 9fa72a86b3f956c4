"""Input data: sources, splits, pixels, augmentation, releases, and atomically written files."""
