"""Prune speech recognisers: Whisper, recordings with transcripts, and word error rates."""
