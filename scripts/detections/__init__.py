"""What a detector finds on an image, drawn: the parts of scripts/show_detections.py."""
