"""One run: config, plan, steps, state, and the folder that it writes."""
