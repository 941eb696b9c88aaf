"""Data: from a folder of images to batches on the device."""
