"""What every route of the REST interface shares."""
