"""A training run: its folder, checkpoints, log, and how it goes on."""
