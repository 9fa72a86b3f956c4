"""From a label to a stored generation: one request at a time."""
