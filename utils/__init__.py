"""What the training scripts share, one idea per file; a file imports only from those below it.

cli, engine, logger, checkpoint, data, digits, sampling, complexity, schedule, distributed, randomness, errors
"""
