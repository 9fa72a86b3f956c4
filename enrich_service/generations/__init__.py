"""What language models and people wrote: tables, store, reviews."""
