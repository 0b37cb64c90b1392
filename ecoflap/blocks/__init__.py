"""Run the blocks of a model one by one: capture, replay and bypass them, and measure the inputs of layers."""
