"""Compiles a run's training step and search for devices that are not there, and reports memory, FLOPs and bounds."""
