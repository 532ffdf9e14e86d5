"""Measurements of many configurations on many samples."""
