"""The fixtures of whole runs."""

from tests.cli.conftest import text_run, tiny_llama, token_file

__all__ = ["text_run", "tiny_llama", "token_file"]
