"""Runs in the background: who works on which, and how a live one is asked."""
