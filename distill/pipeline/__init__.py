"""From a release to a report: jobs, checks beforehand, seeds, few-shot, prompt learning."""
