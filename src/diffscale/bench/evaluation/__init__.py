"""Metrics of a folder of pictures."""
