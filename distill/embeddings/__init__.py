"""Cached teacher features of texts and images, and the prompts that are encoded."""
