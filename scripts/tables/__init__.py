"""The tables that results.py writes: published figures, and studies made with this code."""
