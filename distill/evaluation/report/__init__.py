"""Reports of training jobs, for machines and for people."""
