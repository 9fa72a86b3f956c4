"""Reports of training jobs as JSON and HTML."""
