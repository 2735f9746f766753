"""The loss of every method, as its paper has it: from tensors to a scalar with a graph."""
