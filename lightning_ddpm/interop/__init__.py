"""Conversion to and from the file formats of other programs."""
