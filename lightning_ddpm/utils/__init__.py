"""Errors, random numbers, files, hashing and console output, shared by every other folder."""
