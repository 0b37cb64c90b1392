"""MMLU, and other multiple-choice questions in its layout."""
