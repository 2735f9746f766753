"""Spend compute at inference, get better samples: search over noises and sampling trajectories."""

__version__ = "0.1.0"
