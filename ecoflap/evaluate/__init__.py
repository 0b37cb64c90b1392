"""Tasks: a task reads its data once and then measures any number of models on them."""
