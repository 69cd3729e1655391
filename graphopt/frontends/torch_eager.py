"""What a torch module itself computes, to compare the captured model with."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphopt.frontends.torch_capture import arguments_of, quiet
from graphopt.ir.program import Program


def eager_outputs(
    model: Any, example_inputs: Any, program: Program
) -> list[npt.NDArray[Any]] | None:
    """Return the outputs of ``model`` on the first sample, flat, in the order of the program.

    None where running the module would prove nothing or change it: an exported program (it has no
    other form), a module that writes its buffers, outputs that are no tensors of a type numpy has.
    """
    if not isinstance(model, nn.Module) or program.states:
        return None
    args, kwargs = arguments_of(example_inputs)
    flat, tree = pytree.tree_flatten((args, kwargs))
    flat = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in flat]
    args, kwargs = pytree.tree_unflatten(flat, tree)
    with quiet(), torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return None
    if any(leaf.dtype is torch.bfloat16 for leaf in leaves):
        return None
    return [leaf.detach().cpu().numpy() for leaf in leaves]
