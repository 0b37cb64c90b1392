"""Rows of one's own files: chats, questions and captions in JSON, Parquet or tar shards."""
