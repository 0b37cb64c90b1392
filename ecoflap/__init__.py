"""ECoFLaP: prune vision-language models and LLMs in one pass, coarse sparsities first, fine masks second."""

__version__ = "0.1.0"
