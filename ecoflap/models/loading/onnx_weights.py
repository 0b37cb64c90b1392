"""Weights of an ONNX file, by the parameter names of the exported modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.storage.installation import install_extra


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Read every stored tensor by name.

    The exporter folds the transpose of a linear weight into the stored tensor and gives it a number for a
    name. Such a weight is recognised by the named bias that is added to its product, and is returned as
    ``nn.Linear`` stores it.

    Raises:
        UserError: if the ``onnx`` reader is missing.
    """
    try:
        import onnx
    except ImportError:
        raise UserError(f"reading an ONNX file needs the onnx package: {install_extra('saliency')}") from None
    graph = onnx.load(path).graph
    tensors = {
        stored.name: torch.from_numpy(onnx.numpy_helper.to_array(stored).copy())
        for stored in graph.initializer
    }
    for number, name in _linear_weights(graph, tensors).items():
        tensors[name] = tensors.pop(number).t().contiguous()
    return tensors


def _linear_weights(graph: Any, tensors: dict[str, Tensor]) -> dict[str, str]:
    """{number that the exporter gave: parameter name} of each ``Add(bias, MatMul(x, weight))``."""
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    names = {}
    for node in graph.node:
        bias = next((name for name in node.input if name in tensors and name.endswith(".bias")), None)
        product = next((products[name] for name in node.input if name in products), None)
        if node.op_type == "Add" and bias and product:
            names.update(
                {name: f"{bias.removesuffix('.bias')}.weight" for name in product.input if name in tensors}
            )
    return names
