"""What the training scripts share, one idea per file; a file imports only from those named after it.

arguments, run, network, engine, averaging, checkpoint, logger, metrics, data, digits, sampling, precision,
optim, losses, mixing, complexity, schedule, randomness, cli, distributed, files, text, errors
"""
