"""Rules that check one answer of a language model before it is used."""
