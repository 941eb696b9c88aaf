"""What scripts/benchmark.py measures.

A file per subcommand (its docstring is the help): model, loader, decode, optimizer, step, scaling. Beside
them measure (turns, time, memory), gpus (published peaks), images and training (what is shared), report.
"""
