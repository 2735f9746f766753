"""A pipeline's own call, run over a window of its steps."""
