"""What the scripts share, in rooms; each imports only from those below it.

command_line  the flags in groups, and what is refused at once; only it and the scripts know ``args``
runs          a training run: its folder, checkpoints, log, and how it goes on
training      a step and an epoch: tasks, losses, optimizer, precision, metrics
networks      building a network, and reading and writing its weights
data          from a folder of images to batches on the device
common        what all stand on: processes, devices, randomness, files, errors
"""
