"""What runs and sweeps leave in their folders, by name: one place for the code that writes a file and the
code that looks for it.

This module imports nothing, so that ``--help`` and the cluster's plugins can use it.
"""

# In a run's folder.
RESULT = "result.json"
STATUS = "status.json"
LEASE = ".lease"
SCORES = "scores.json"
ALLOCATION = "allocation.json"
FINETUNE = "finetune.json"
TRAINING = "finetune"
PREDICTIONS = "predictions"
BLOCKS = "blocks"

# In a sweep's.
JOBS = "jobs.json"

# In a copy of the code that queued jobs run: where it was copied from, and its commit then.
SNAPSHOT = "snapshot.json"
