"""Prompts to measure on, and folders of pictures."""
