"""The enrichment of label sets: plans, scheduling, describing at once."""
