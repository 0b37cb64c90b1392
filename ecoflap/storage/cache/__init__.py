"""The stage cache: a step whose inputs were seen before is read back instead of computed again."""
