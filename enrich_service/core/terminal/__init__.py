"""What the commands of `enrich` share."""
