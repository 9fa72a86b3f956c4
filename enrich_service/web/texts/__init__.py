"""Pages of label sets, their texts and releases."""
