"""Helper modules of the commands in scripts/; none of them is a command.

A file's name begins with what it belongs to:

- benchmark_*: scripts/benchmark.py. Its subcommands are model, loader, decode, growth, optimizer, step and
  scaling; they share measure, report, images, training and gpus.
- data_*: check_data.py, resize_images.py, prepare_imagenet.py, predict.py, show_detections.py
- prepare_*: prepare_imagenet.py
- gates_*: show_gates.py, analyse_gates.py
- grad_cam: show_gates.py
- detections_*: show_detections.py
- results_*: results.py, study.py
- study_*: study.py, record_run.py, results.py
- published_form: convert_checkpoint.py
- restored: all that run a checkpoint's network
- pictures: all that draw
- checks: all that write files
- venv.sh: demo.sh, test.sh
"""
