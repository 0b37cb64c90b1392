"""The stage cache: a step whose inputs were seen before is read instead of computed again."""
