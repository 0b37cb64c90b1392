"""What lies beside a saved model: a model card, a recipe and the record; and their way to the hub."""
