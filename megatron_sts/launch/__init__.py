"""Starts the ranks of a command on this node: torchrun, but with the ranks' own exit code and last words."""
