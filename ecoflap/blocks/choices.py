"""The values of options that both the config and the code check; imports no torch, for a fast --help."""

PROPAGATE = ("auto", "pruned", "layer", "compensated", "dense")
"""What comes before a layer when its inputs are measured; auto stands for one of the others."""
TOKENS = ("all", "text", "answer", "atv")
"""The tokens that count in the statistics of a layer's inputs."""
