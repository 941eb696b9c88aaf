"""What all rooms stand on: processes, devices, randomness, files, errors."""
