"""Benchmarks of speed, memory and image quality: ``python -m benchmarks --help``."""
