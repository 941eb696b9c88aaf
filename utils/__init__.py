"""What the training scripts share, one idea per file; a file imports only from those named after it.

arguments, run, resume, saving, folder, rehearsal, network, classification, engine, averaging, fitting,
published, checkpoint, archive, curves, logger, events, metrics, ragged, data, splits, labels, index,
transforms, decoding, digits, sampling, precision, optim, losses, mixing, compilation, complexity, schedule,
randomness, cli, distributed, rendezvous, snapshot, signals, settings, provenance, files, text, errors
"""
