"""The parts of show_gates.py: what the attention of a network computes, and its picture."""
