"""The demo: rendered images, a teacher, recorded descriptions, and the whole pipeline."""
