"""ECoFLaP: prune vision-language models and LLMs in one pass, coarse sparsities first, fine masks second.

The steps are functions, and ``ecoflap.prune`` does them all::

    result = ecoflap.prune(model, tokenizer, data=texts, sparsity=0.6)

``import ecoflap`` loads none of them: they, and PyTorch, come when they are asked for.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecoflap.allocate.alpha_pruning import AlphaPruning as AlphaPruning
    from ecoflap.allocate.atp import ATP as ATP
    from ecoflap.allocate.dlp import DLP as DLP
    from ecoflap.allocate.er import ER as ER
    from ecoflap.allocate.evopress import EvoPress as EvoPress
    from ecoflap.allocate.from_file import FromFile as FromFile
    from ecoflap.allocate.in_context import InContext as InContext
    from ecoflap.allocate.lsa import LSA as LSA
    from ecoflap.allocate.multiflow import Multiflow as Multiflow
    from ecoflap.allocate.neuronal import Neuronal as Neuronal
    from ecoflap.allocate.owl import OWL as OWL
    from ecoflap.allocate.tamp import TAMP as TAMP
    from ecoflap.allocate.water_filling import WaterFilling as WaterFilling
    from ecoflap.api.calibration import calibrate as calibrate
    from ecoflap.api.loading import load as load
    from ecoflap.api.pruned import load_pruned as load_pruned
    from ecoflap.api.pruning import prune as prune
    from ecoflap.api.result import PruneResult as PruneResult
    from ecoflap.api.saving import save as save
    from ecoflap.api.steps import allocate as allocate
    from ecoflap.api.steps import evaluate as evaluate
    from ecoflap.api.steps import score as score
    from ecoflap.distributed.processes import joined as joined
    from ecoflap.errors import NumericalError as NumericalError
    from ecoflap.errors import UserError as UserError
    from ecoflap.prune.admm import ADMM as ADMM
    from ecoflap.prune.global_gradient import GlobalGradient as GlobalGradient
    from ecoflap.prune.global_magnitude import GlobalMagnitude as GlobalMagnitude
    from ecoflap.prune.magnitude import Magnitude as Magnitude
    from ecoflap.prune.ria import RIA as RIA
    from ecoflap.prune.sparsegpt import SparseGPT as SparseGPT
    from ecoflap.prune.wanda import Wanda as Wanda
    from ecoflap.score.first_order import FirstOrder as FirstOrder
    from ecoflap.score.local import Local as Local
    from ecoflap.score.zeroth_order import ZerothOrder as ZerothOrder

__version__ = "0.1.0"
HOMES = {
    "ADMM": "ecoflap.prune.admm",
    "ATP": "ecoflap.allocate.atp",
    "AlphaPruning": "ecoflap.allocate.alpha_pruning",
    "DLP": "ecoflap.allocate.dlp",
    "ER": "ecoflap.allocate.er",
    "EvoPress": "ecoflap.allocate.evopress",
    "FirstOrder": "ecoflap.score.first_order",
    "FromFile": "ecoflap.allocate.from_file",
    "GlobalGradient": "ecoflap.prune.global_gradient",
    "GlobalMagnitude": "ecoflap.prune.global_magnitude",
    "InContext": "ecoflap.allocate.in_context",
    "LSA": "ecoflap.allocate.lsa",
    "Local": "ecoflap.score.local",
    "Magnitude": "ecoflap.prune.magnitude",
    "Multiflow": "ecoflap.allocate.multiflow",
    "Neuronal": "ecoflap.allocate.neuronal",
    "NumericalError": "ecoflap.errors",
    "OWL": "ecoflap.allocate.owl",
    "PruneResult": "ecoflap.api.result",
    "RIA": "ecoflap.prune.ria",
    "SparseGPT": "ecoflap.prune.sparsegpt",
    "TAMP": "ecoflap.allocate.tamp",
    "UserError": "ecoflap.errors",
    "Wanda": "ecoflap.prune.wanda",
    "WaterFilling": "ecoflap.allocate.water_filling",
    "ZerothOrder": "ecoflap.score.zeroth_order",
    "calibrate": "ecoflap.api.calibration",
    "joined": "ecoflap.distributed.processes",
    "load": "ecoflap.api.loading",
    "load_pruned": "ecoflap.api.pruned",
    "save": "ecoflap.api.saving",
}
"""{public name: the module that has it}."""
STEPS = {
    "allocate": "ecoflap.api.steps",
    "evaluate": "ecoflap.api.steps",
    "prune": "ecoflap.api.pruning",
    "score": "ecoflap.api.steps",
}
"""Likewise, of the functions that share their name with a folder of the package."""
__all__ = [*HOMES, *STEPS]


class Step(ModuleType):
    """A callable package: ``ecoflap.prune(...)`` is a function, ``ecoflap.prune.driver`` a module."""

    @property
    def __wrapped__(self) -> Any:
        """The function."""
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(STEPS[name]), name)

    @property
    def __signature__(self) -> Signature:
        """The function's."""
        return signature(self.__wrapped__)

    def _documentation(self) -> str | None:
        """The function's, which ``help(ecoflap.prune)`` and notebooks show."""
        documentation: str | None = self.__wrapped__.__doc__
        return documentation

    __doc__ = property(_documentation)  # type: ignore[assignment]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Do the step; see ``__wrapped__`` for its arguments."""
        return self.__wrapped__(*arguments, **keywords)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy it by its name, as a function."""
        return import_module, (self.__name__,)


class Package(ModuleType):
    """This package: public names are imported when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        """Import a public name."""
        if name in STEPS:
            # Another thread may be importing the folder, and not have come to making it callable.
            found = import_module(f"{__name__}.{name}")
        elif name in HOMES:
            found = getattr(import_module(HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Make the folders of steps callable, as soon as they are imported."""
        if name in STEPS and type(value) is ModuleType:
            value.__class__ = Step
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """What is there, with what is not imported yet."""
        return sorted({*vars(self), *__all__})


sys.modules[__name__].__class__ = Package
