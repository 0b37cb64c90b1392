"""One run: its config, plan, steps, state and folder."""
