"""Load a saved model from any form of checkpoint, ready for use, without towers or tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError, did_you_mean
from ecoflap.models.core.wide_parts import DTYPE_OPTION
from ecoflap.models.loading.conversion import saved_form
from ecoflap.models.loading.device import resolve_device
from ecoflap.models.loading.hub import checkpoint_folder, from_hub, require_folder
from ecoflap.models.loading.pretrained_weights import load_weights
from ecoflap.models.loading.skeleton import class_as_cut, skeleton
from ecoflap.models.sparse.sparsify import sparsify_if_possible
from ecoflap.storage.bitmask.encoding import same_bits
from ecoflap.storage.saved_model import WEIGHTS, open_checkpoint, refuse_adapter
from ecoflap.storage.tensor_files import TensorFiles

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


@overload
def load_pruned(
    folder: str | Path, into: Module, *, device: str | torch.device | None = None, sparse: bool = False
) -> Module: ...
@overload
def load_pruned(
    folder: str | Path, into: None = None, *, device: str | torch.device | None = None, sparse: bool = False
) -> nn.Module: ...
def load_pruned(
    folder: str | Path,
    into: nn.Module | None = None,
    *,
    device: str | torch.device | None = None,
    sparse: bool = False,
) -> nn.Module:
    """Load a model that was saved in dense, bitmask or coded form, bit for bit in its dtype.

    Each tensor is decoded, checked and moved to the device before the next one is read. Those that
    transformers keeps in fp32, such as T5's ``wo`` in fp16 models, are loaded in fp32 with the same values.
    Those that it joins, such as experts, have the dtype of ``config.json``, with a warning if it rounds them.

    Args:
        folder: a folder that ``ecoflap.save``, a run (its own folder, or the ``checkpoint`` in it) or
            ``ecoflap convert`` wrote, or a hub id of one.
        into: a module that takes the weights, for models that transformers does not build; None to build
            the model of the folder's ``config.json``.
        device: ``"cpu"``, ``"cuda"``, ...; ``"meta"`` reads no weights; None for the accelerator, if there
            is one, or for where ``into`` is. With ``sparse`` it is the CPU.
        sparse: keep linear layers in memory without their zeros, and multiply without them, in fp32 and
            bf16. This needs gcc and AVX2 or AVX-512; without them the weights stay dense, with a
            warning.

    Raises:
        UserError: if there is no such checkpoint, it is unfinished or damaged, has an adapter beside it, or
            does not fit the module, or ``sparse`` is requested on another device.
    """
    if not isinstance(folder, str | PathLike):
        raise UserError(
            f"the folder is a {type(folder).__name__}; give the folder that ecoflap.save wrote, or a"
            " hub id (the model of a PruneResult is in memory already, as result.model)"
        )
    device = str(device) if isinstance(device, torch.device) else device
    if sparse:
        if device not in (None, "cpu"):
            raise UserError(
                f"sparse=True is for the CPU, not for device={device!r}; leave out one of the two"
            )
        module = load_pruned(folder, into, device="cpu")
        sparsify_if_possible(module)
        return module
    path = str(checkpoint_folder(require_folder(str(folder), "folder"), None))
    refuse_adapter(Path(path))
    if into is not None:
        _fill(into, Path(path), device)
        return into
    place = torch.device("meta") if device == "meta" else resolve_device(device or "auto")
    from transformers import AutoConfig

    if not (Path(path) / "config.json").is_file():
        raise UserError(
            f"{path} has no config.json, so transformers can't build its model; build it yourself and give"
            " it: ecoflap.load_pruned(folder, model)"
        )
    config = from_hub(lambda: AutoConfig.from_pretrained(path), path)
    model_class = _class_of(path, config)
    if place.type == "meta":
        return skeleton(model_class, config)
    onto = {} if place.type == "cpu" else {"device_map": {"": place}}
    module = load_weights(model_class, path, None, {DTYPE_OPTION: "auto", **onto}).eval()
    _restore_rounded(module, Path(path))
    return module


def _restore_rounded(module: nn.Module, folder: Path) -> None:
    """Read tensors again that the config's dtype, to which transformers casts all, may not hold exactly.

    Raises:
        UserError: if a file holds tensors of other dtypes than are known here.
    """
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return  # pickled, by others
    with open_checkpoint(folder) as checkpoint:
        try:
            stored, own = checkpoint.shapes(), _tensors(module)
        except OSError as error:
            raise UserError(f"{folder} can't be loaded bit for bit: {error}") from error
        names = _names_in_file(module, own)
        made = [own[name] for name in own.keys() - names.keys()]
        _warn_of_joined(made, {name: stored[name] for name in stored.keys() - set(names.values())})
        for name, in_file in names.items():
            like, tensor = stored.get(in_file), own[name]
            if like is None or not like.is_floating_point() or like.dtype == tensor.dtype:
                continue
            if like.itemsize >= tensor.itemsize:  # wider, or the other one of the half precisions
                tensor.data = checkpoint.read(in_file).to(tensor.device)


def _warn_of_joined(made: Iterable[Tensor], joined: Mapping[str, Tensor]) -> None:
    """Warn of stored tensors that are rounded, as transformers joins or divides them while it loads them.

    Args:
        made: what it has made of them.
        joined: the stored tensors, by name.
    """
    dtype = min(
        (one.dtype for one in made if one.is_floating_point()),
        key=lambda one: one.itemsize,
        default=torch.float64,
    )
    floats = {name: like.dtype for name, like in sorted(joined.items()) if like.is_floating_point()}
    if wider := [name for name, stored in floats.items() if stored.itemsize > dtype.itemsize]:
        log.warning(
            "%d tensors, such as %s (%s), were rounded to %s: transformers joins them with others as it loads"
            " them, in the dtype of config.json",
            len(wider),
            wider[0],
            str(floats[wider[0]]).removeprefix("torch."),
            str(dtype).removeprefix("torch."),
        )


def _names_in_file(module: nn.Module, own: dict[str, Tensor]) -> dict[str, str]:
    """The names that tensors of a module have in its checkpoint, without those that are saved in parts."""
    on_meta = _on_meta(own)
    in_file = {id(tensor): name for name, tensor in saved_form(module, on_meta).items()}
    return {name: in_file[id(tensor)] for name, tensor in on_meta.items() if id(tensor) in in_file}


def _on_meta(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names with tensors that hold no values, from which a saved form is computed for free."""
    return {name: tensor.detach().to("meta") for name, tensor in tensors.items()}


def _class_of(path: str, config: Any) -> Any:
    """The class that saved the model, which its config names.

    Raises:
        UserError: if the installed transformers has no such class.
    """
    import transformers

    name = (getattr(config, "architectures", None) or [""])[0]
    found = getattr(transformers, name, None)
    if found is None:
        raise UserError(
            f"{path} is of the class {name or '(none)'}, which transformers {transformers.__version__} does"
            " not have; install a newer one, or give the model: ecoflap.load_pruned(folder, model)"
        )
    return class_as_cut(found, config)


def _fill(module: nn.Module, folder: Path, device: str | None) -> None:
    """Give a module the tensors of a checkpoint, in their dtype.

    Raises:
        UserError: if it is not there or damaged, or its names or shapes are not the module's.
    """
    if any(tensor.is_meta for tensor in _tensors(module).values()):
        raise UserError(
            f"{type(module).__name__} is on the meta device, and can't take weights; build it on the CPU"
        )
    try:
        with open_checkpoint(folder) as checkpoint:
            shapes = checkpoint.shapes()
            own = _tensors_as_in(shapes, module)
            _check_fits(folder, own, shapes, module)
            _check_tied(folder, own, checkpoint, module)
            if device is not None:
                module.to(device if device == "meta" else resolve_device(device))
                own = _tensors_as_in(shapes, module)  # moving replaces buffers
            for name in shapes:
                own[name].data = checkpoint.read(name).to(own[name].device)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} can't be loaded: {error}") from error


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module's state dict, tied ones under each name."""
    saved = module.state_dict().keys()
    every: dict[str, Tensor] = {**dict(module.named_parameters(remove_duplicate=False))}
    every |= dict(module.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in every.items() if name in saved}


def _tensors_as_in(names: Container[str], module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by their names in a checkpoint, where transformers saves some under others.

    Args:
        names: of the tensors in the checkpoint.
        module: the module.
    """
    from transformers import PreTrainedModel

    own = _tensors(module)
    if not isinstance(module, PreTrainedModel) or all(name in names for name in own):
        return own
    in_file = _names_in_file(module, own)
    return {in_file.get(name, name): tensor for name, tensor in own.items()}


def _check_fits(folder: Path, own: dict[str, Tensor], shapes: dict[str, Tensor], module: nn.Module) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        UserError: if a name or a shape is not the module's, or a tensor of the module is missing.
    """
    from transformers import PreTrainedModel

    what = f"{folder} does not fit {type(module).__name__}"
    if unknown := [name for name in shapes if name not in own]:
        every = _on_meta(_tensors(module))
        if isinstance(module, PreTrainedModel) and unknown[0] in saved_form(module, every):
            raise UserError(
                f"{folder} has {unknown[0]}, which transformers joins with others as it loads"
                f" {type(module).__name__}; leave the model out: ecoflap.load_pruned(folder)"
            )
        raise UserError(f"{what}, which has no {unknown[0]}; {did_you_mean(unknown[0], own)}")
    if wrong := [name for name, like in shapes.items() if like.shape != own[name].shape]:
        one = wrong[0]
        raise UserError(f"{what}: {one} is {list(shapes[one].shape)} there and {list(own[one].shape)} here")
    filled = {id(own[name]) for name in shapes}
    if missing := [name for name, tensor in own.items() if id(tensor) not in filled]:
        raise UserError(f"{what}: it has no {missing[0]}; give the model that was saved")


def _check_tied(folder: Path, own: dict[str, Tensor], checkpoint: TensorFiles, module: nn.Module) -> None:
    """Refuse a checkpoint with two values for what is one tensor of the module.

    Raises:
        UserError: if there is one.
    """
    first: dict[int, str] = {}
    for name in checkpoint.shapes():
        other = first.setdefault(id(own[name]), name)
        if other != name and not same_bits(checkpoint.read(other), checkpoint.read(name)):
            raise UserError(
                f"{folder} does not fit {type(module).__name__}: {other} and {name} are two weights there and"
                " one here; build the module with two"
            )
