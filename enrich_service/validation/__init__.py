"""Rules that read one answer of a language model before anyone trusts it."""
