"""Enrichment service: class names in, versioned and released texts out."""
