"""What a person sees of a run: progress, tables, what a step costs, and experiment tracking."""
