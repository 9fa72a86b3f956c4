"""The training loop with optimisers, schedules, checkpoints and distributed training."""
