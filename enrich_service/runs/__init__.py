"""Enrichment of label sets: plans, scheduling, immediate descriptions."""
