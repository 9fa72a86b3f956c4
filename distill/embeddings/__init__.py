"""Teacher features of texts and images, computed once and cached."""
