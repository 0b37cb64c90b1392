"""The command line of ``main.py``: what is refused before Hydra reads it, and what was wrong where Hydra
refused it.
"""

from ecoflap.cli.arguments import understood, with_suites
from ecoflap.cli.wrong import explain

__all__ = ["explain", "understood", "with_suites"]
