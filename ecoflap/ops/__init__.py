"""Pruning mathematics as pure functions on tensors.

Masks with exact counts, and their refinement by swaps; the metrics of Wanda and RIA; the solves of SparseGPT
and ADMM, the inverses that they need and the compensation of earlier errors; the allocations that share a
budget of weights; and reproducible noise. Nothing here reads a config or a file, logs, or knows what a model
is, so each file can be read, used and tested by itself.
"""

from ecoflap.ops.admm import NormalisedInverse, admm_repair, admm_solve, normalised_inverse
from ecoflap.ops.budget_descent import descend, shift_to_budget
from ecoflap.ops.compensation import compensate
from ecoflap.ops.divergence import kl_divergence
from ecoflap.ops.global_selection import select_globally
from ecoflap.ops.greedy_removal import greedy_removal_error
from ecoflap.ops.hessian import InverseFactor, NotPositiveDefiniteError, inverse_factor
from ecoflap.ops.noise import gaussian, seed_for
from ecoflap.ops.ramp import ramp, shift_to_total
from ecoflap.ops.ria import ria_metric
from ecoflap.ops.rounding import round_in_turn, round_to_total
from ecoflap.ops.selection import (
    Keep,
    Pattern,
    check_keep,
    select,
    select_by_row,
    select_in_matrix,
    select_in_rows,
    select_n_of_m,
)
from ecoflap.ops.shared_selection import Part, select_part
from ecoflap.ops.sparsegpt import Solution, sparsegpt_solve
from ecoflap.ops.spectrum import eigenvalues, tail_exponent
from ecoflap.ops.swaps import swap_masks
from ecoflap.ops.wanda import wanda_metric
from ecoflap.ops.water_filling import proportional, water_fill

__all__ = [
    "InverseFactor",
    "Keep",
    "NormalisedInverse",
    "NotPositiveDefiniteError",
    "Part",
    "Pattern",
    "Solution",
    "admm_repair",
    "admm_solve",
    "check_keep",
    "compensate",
    "descend",
    "eigenvalues",
    "gaussian",
    "greedy_removal_error",
    "inverse_factor",
    "kl_divergence",
    "normalised_inverse",
    "proportional",
    "ramp",
    "ria_metric",
    "round_in_turn",
    "round_to_total",
    "seed_for",
    "select",
    "select_by_row",
    "select_globally",
    "select_in_matrix",
    "select_in_rows",
    "select_n_of_m",
    "select_part",
    "shift_to_budget",
    "shift_to_total",
    "sparsegpt_solve",
    "swap_masks",
    "tail_exponent",
    "wanda_metric",
    "water_fill",
]
