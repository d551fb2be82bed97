"""Training: one step, the optimiser that respects skipped layers, checkpoints, figures, one stage, all stages."""
