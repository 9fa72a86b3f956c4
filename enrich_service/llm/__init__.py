"""Language models behind an OpenAI-compatible URL."""
