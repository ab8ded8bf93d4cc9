"""Removing channels from a program, whoever chose them: what may go together, the tensors, the graph, the plan."""
