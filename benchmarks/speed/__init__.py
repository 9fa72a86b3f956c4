"""Speed against named alternatives, side by side."""
