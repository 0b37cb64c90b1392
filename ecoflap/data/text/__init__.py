"""Texts for language models: windows of tokens, and perplexity."""
