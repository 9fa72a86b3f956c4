"""From a finished run to a classifier folder, which `distill.runtime` uses without torch."""
