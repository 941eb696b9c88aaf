"""Networks: built, started from checkpoints, counted, compiled."""
