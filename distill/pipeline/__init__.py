"""Training jobs from release to report, with preflight checks, seeds, few-shot, prompt learning."""
