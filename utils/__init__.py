"""What the training scripts share, one idea per file; a file imports only from those named after it.

cli, engine, checkpoint, logger, metrics, data, digits, sampling, complexity, schedule, distributed,
randomness, errors
"""
