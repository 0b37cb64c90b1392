"""The allocation: from scores to the number of weights that each layer keeps."""
