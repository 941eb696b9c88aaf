"""Training and evaluation: the loops, tasks, losses, optimizer, precision, metrics."""
