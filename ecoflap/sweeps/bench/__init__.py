"""Dense and pruned models side by side: what they take, and how fast they are."""
