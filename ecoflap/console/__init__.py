"""Output for the user: progress, tables, costs of steps, and experiment tracking."""
