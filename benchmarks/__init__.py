"""Speed, measured in pairs: ``python -m benchmarks --help``."""
