"""Tasks: a task reads its data once and then evaluates any number of models on them."""
