"""The outcome of a run: verify the realised sparsity, save the checkpoint, and write the result."""

from __future__ import annotations

import shutil
from dataclasses import replace

from ecoflap.distributed.processes import is_first
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import WORK
from ecoflap.run.plan import Plan
from ecoflap.run.record import make_record
from ecoflap.run.state import RunState
from ecoflap.storage.bitmask.forms import form_of
from ecoflap.storage.checkpoint import save_checkpoint
from ecoflap.storage.file_names import BLOCKS, RESULT
from ecoflap.storage.results import Result
from ecoflap.storage.sharing.describe import describe, with_hashes


def conclude(plan: Plan, model: PrunableModel, state: RunState) -> Result:
    """Verify the realised sparsity, save the checkpoint if requested, and write ``result.json`` last."""
    record = make_record(
        model,
        state,
        plan.record,
        plan.pruner,
        plan.coarse,
        plan.origin,
        plan.sources,
        plan.uses_calibration,
    )
    form, report, saved = form_of(plan.loader.save), state.report, None
    if form is not None and report is not None and is_first():
        saved = save_checkpoint(model, report.masks, plan.folder, form)
    shutil.rmtree(plan.folder / WORK, ignore_errors=True)
    result = replace(record, standard_errors=state.standard_errors, checkpoint=saved)
    if saved is not None:
        result = with_hashes(result, plan.folder / saved)
        describe(plan.folder / saved, result)
    result.write(plan.folder / RESULT)
    shutil.rmtree(plan.folder / BLOCKS, ignore_errors=True)
    return result
