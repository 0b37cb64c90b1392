"""From scores to the number of weights that each layer keeps."""
