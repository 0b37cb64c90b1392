"""The result record of a run: write it, read it, and check it against the saved weights."""

from ecoflap.storage.results.environment import environment, redact
from ecoflap.storage.results.record import SCHEMA_VERSION, Result
from ecoflap.storage.results.sparsity import UNCORRELATED, LayerCount, sparsity_section
from ecoflap.storage.results.verification import verify

__all__ = [
    "SCHEMA_VERSION",
    "UNCORRELATED",
    "LayerCount",
    "Result",
    "environment",
    "redact",
    "sparsity_section",
    "verify",
]
