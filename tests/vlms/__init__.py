"""Tiny random vision-language models as folders of the hub: config, weights, tokenizer and chat template."""
