"""Faster, Mask and Cascade R-CNN on the residual nets of models/, with torchvision's detection parts.

``backbone`` makes a feature pyramid of a classification net and its checkpoint, ``heads`` has the box and
mask heads, ``detectors`` puts both together, ``recipes`` is the table of the published configurations.
``coco`` reads images and annotations, ``evaluate`` scores detections, ``task`` is what is learned and logged;
``train`` is the script, ``options`` its command line.
"""
