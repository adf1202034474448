"""The families of pretrained checkpoints: a file each, and registry.py, which finds the one for a config.json."""
