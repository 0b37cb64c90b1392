"""Run the blocks of a model one by one: capture their inputs, replay, bypass, and measure what layers
read.
"""
