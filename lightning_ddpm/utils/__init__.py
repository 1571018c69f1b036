"""Errors, random numbers, files and console output, shared by every other folder."""
