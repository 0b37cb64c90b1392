"""The stage store: a step whose inputs were seen before is read back instead of computed again."""

from ecoflap.store.code import package_hash, source_hash
from ecoflap.store.entries import AS_JSON, AS_TENSORS, key_hash
from ecoflap.store.files import JSON, read_json, replacing, write_json
from ecoflap.store.lease import Lease
from ecoflap.store.store import Store

__all__ = ["AS_JSON", "AS_TENSORS", "JSON", "Lease", "Store", "key_hash", "package_hash", "read_json", "replacing", "source_hash", "write_json"]
