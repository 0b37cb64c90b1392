"""One run in several processes: each has its share of the samples, all have the same result."""
