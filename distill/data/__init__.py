"""Images and texts as they come in: splits, pixels, views, releases, and files written whole."""
