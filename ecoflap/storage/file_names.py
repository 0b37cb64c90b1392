"""Names of the files in the folders of runs and sweeps, for the code that writes and that reads them.

This module imports nothing, so that ``--help`` and the cluster's plugins can use it.
"""

# Where runs share what they have computed, unless they are told otherwise.
CACHE = "outputs/cache"

# In a run's folder.
RESULT = "result.json"
STATUS = "status.json"
LEASE = ".lease"
SCORES = "scores.json"
ALLOCATION = "allocation.json"
FINETUNE = "finetune.json"
TRAINING = "finetune"
PREDICTIONS = "predictions"
ITEMS = "{task}_{state}_items.json"  # in the folder of predictions
BLOCKS = "blocks"
CHECKPOINT = "checkpoint"
BENCH = "bench.json"
HYDRA = ".hydra"

# Beside a saved model.
CARD = "README.md"
RECIPE = "recipe.yaml"
MASKS = "masks.bits"  # safetensors, but servers such as vLLM take each *.safetensors for weights

# In the folder of a model that save_pretrained wrote: its weights, or the index of several files with them.
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

# In the folder of a peft adapter, which from_pretrained adds to a model beside them: patterns of its files.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = (ADAPTER_CONFIG, "adapter_model*.safetensors", "adapter_model*.bin")

# In the folder of a bitmask checkpoint: the index, and the pattern of its shards.
BITMASK_INDEX = "bitmask.index.json"
BITMASK_SHARDS = "bitmask-*.safetensors"

# In a sweep's folder.
JOBS = "jobs.json"

# In a copy of the code that queued jobs run: its origin, and the origin's commit at that time.
SNAPSHOT = "snapshot.json"
