"""Coordinates of drawings, for inline SVG."""
