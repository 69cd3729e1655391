"""LSTM, GRU and RNN: torch's own kernels where they compute the same, else a loop over time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from graphopt.backends.torch_ops.registry import op
from graphopt.errors import UnsupportedError

Cell = Callable[..., tuple[Tensor, ...]]
# torch orders the gates of an LSTM as i, f, c, o and of a GRU as r, z, h; ONNX i, o, f, c and
# z, r, h.
_LSTM_ORDER = (0, 2, 3, 1)
_GRU_ORDER = (1, 0, 2)

_LSTM, _GRU, _RNN = ["sigmoid", "tanh", "tanh"], ["sigmoid", "tanh"], ["tanh"]

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, b: torch.nn.functional.elu(x, a),
    "hardsigmoid": lambda x, a, b: torch.clamp(a * x + b, 0, 1),
    "leakyrelu": lambda x, a, b: torch.nn.functional.leaky_relu(x, a),
    "relu": lambda x, a, b: torch.relu(x),
    "scaledtanh": lambda x, a, b: a * torch.tanh(b * x),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "softplus": lambda x, a, b: torch.logaddexp(x, torch.zeros_like(x)),
    "softsign": lambda x, a, b: x / (1 + torch.abs(x)),
    "tanh": lambda x, a, b: torch.tanh(x),
    "thresholdedrelu": lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)),
}
_ALPHAS = {"leakyrelu": 0.01, "thresholdedrelu": 1.0, "elu": 1.0, "hardsigmoid": 0.2}
_BETAS = {"hardsigmoid": 0.5}


def _activations(
    names: list[str], alphas: list[float] | None, betas: list[float] | None
) -> list[Callable[[Tensor], Tensor]]:
    """Return the functions; parameters are given in order to those that take one."""
    result: list[Callable[[Tensor], Tensor]] = []
    left_alphas, left_betas = list(alphas or []), list(betas or [])
    for name in (n.lower() for n in names):
        if name not in _ACTIVATIONS:
            raise UnsupportedError("torch-operator-form", f"activation '{name}'")
        takes_alpha = name in _ALPHAS or name in ("affine", "scaledtanh")
        takes_beta = name in ("affine", "scaledtanh", "hardsigmoid")
        a = left_alphas.pop(0) if takes_alpha and left_alphas else _ALPHAS.get(name, 1.0)
        b = left_betas.pop(0) if takes_beta and left_betas else _BETAS.get(name, 0.0)
        function = _ACTIVATIONS[name]
        result.append(partial(function, a=a, b=b))
    return result


def _reordered(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    parts = weight.chunk(len(order), 0)
    return torch.cat([parts[i] for i in order], 0)


def _torch_parameters(
    w: Tensor, r: Tensor, b: Tensor | None, order: tuple[int, ...]
) -> list[Tensor]:
    """Return the parameters torch's kernels take, direction by direction."""
    result = []
    for d in range(int(w.shape[0])):
        result += [_reordered(w[d], order), _reordered(r[d], order)]
        if b is not None:
            result += [_reordered(half, order) for half in b[d].chunk(2, 0)]
    return result


def _kernel_parameters(
    w: Any,
    r: Any,
    b: Tensor | None,
    order: tuple[int, ...],
    packed: list[Tensor] | None,
    count: int,
) -> tuple[list[Tensor], bool]:
    """Return the parameters torch's kernels take, and whether there are biases among them."""
    if packed is not None:
        return list(packed), len(packed) == 4 * count
    return _torch_parameters(w, r, b, order), b is not None


def _packed(
    order: tuple[int, ...],
    default: list[str],
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    *,
    activations: list[str] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
    linear_before_reset: int = 1,
    **others: Any,
) -> list[Tensor] | None:
    if clip is not None or input_forget or not _is_default(activations, default):
        return None
    return _torch_parameters(w, r, b, order) if linear_before_reset else None


def _packed_gru(w: Tensor, r: Tensor, b: Tensor | None, **attributes: Any) -> list[Tensor] | None:
    given = {"linear_before_reset": 0, **attributes}
    return _packed(_GRU_ORDER, _GRU, w, r, b, **given)


def _state(given: Tensor | None, x: Tensor, directions: int, hidden: int) -> Tensor:
    """Return the first state.

    Raises:
        ValueError: the tensors do not fit each other; torch's own kernels write outside then.
    """
    if x.dim() != 3:
        raise ValueError(f"a sequence of rank 3 (time, batch, features), got rank {x.dim()}")
    if given is None:
        return torch.zeros([directions, x.shape[1], hidden], dtype=x.dtype)
    if given.dim() != 3 or (given.shape[0], given.shape[2]) != (directions, hidden):
        raise ValueError(f"a state of sizes [{directions}, batch, {hidden}], got {given.shape}")
    # A symbol or a traced size is compared when the file runs, by the operators themselves.
    sizes = given.shape[1], x.shape[1]
    if all(isinstance(size, int) for size in sizes) and sizes[0] != sizes[1]:
        raise ValueError(f"a state for a batch of {sizes[1]}, got one of {sizes[0]}")
    return given


def _sequence(y: Tensor, directions: int, hidden: int) -> Tensor:
    """Return (time, direction, batch, hidden) from torch's (time, batch, direction * hidden)."""
    parts = y.reshape([y.shape[0], y.shape[1], directions, hidden])
    return parts.permute(0, 2, 1, 3)


def _finish(y: Tensor, states: list[Tensor], layout: int, count: int) -> tuple[Tensor, ...]:
    if layout:
        y = y.permute(2, 0, 1, 3)
        states = [s.transpose(0, 1) for s in states]
    return (y, *states)[:count]


def _enter(x: Tensor, layout: int, *states: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
    if not layout:
        return x, list(states)
    return x.transpose(0, 1), [None if s is None else s.transpose(0, 1) for s in states]


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return ``x`` with time reversed, each sequence within its own length."""
    if lengths is None:
        return x.flip(0)
    time = torch.arange(x.shape[0]).unsqueeze(1)
    limit = lengths.to(torch.int64).unsqueeze(0)
    places = torch.where(time < limit, limit - 1 - time, time)
    return x.gather(0, places.unsqueeze(-1).expand(x.shape))


def _loop(
    x: Tensor, states: list[Tensor], lengths: Tensor | None, cell: Cell
) -> tuple[Tensor, list[Tensor]]:
    """Run a cell over time; in a trace the number of steps is that of the sample."""
    if torch.compiler.is_compiling() and not isinstance(x.shape[0], int) and lengths is None:
        return _scanned(x, states, cell)
    outputs = []
    for t in range(int(x.shape[0])):
        fresh = cell(x[t], *states)
        if lengths is not None:
            alive = (lengths > t).unsqueeze(1)
            fresh = tuple(
                torch.where(alive, new, old) for new, old in zip(fresh, states, strict=True)
            )
            outputs.append(torch.where(alive, fresh[0], torch.zeros_like(fresh[0])))
        else:
            outputs.append(fresh[0])
        states = list(fresh)
    return torch.stack(outputs), states


def _scanned(x: Tensor, states: list[Tensor], cell: Cell) -> tuple[Tensor, list[Tensor]]:
    """Run a cell over a time that is open under ``torch.export``."""

    def step(carried: Any, part: Any) -> tuple[list[Tensor], list[Tensor]]:
        element = part[0] if isinstance(part, (list, tuple)) else part
        fresh = list(cell(element, *carried))
        return fresh, [fresh[0].clone()]

    finals, (y,) = scan(step, list(states), [x], dim=0)
    return y, list(finals)


def _follows_kernel(x: Tensor) -> bool:
    """Return whether torch's own kernel may run: its export repeats every step of an open time."""
    return isinstance(x.shape[0], int) or not torch.compiler.is_compiling()


def _directions(
    x: Tensor,
    states: list[Tensor],
    lengths: Tensor | None,
    direction: str,
    cells: Callable[[int], Cell],
) -> tuple[Tensor, list[Tensor]]:
    count = int(states[0].shape[0])
    ys, finals = [], []
    for d in range(count):
        backward = direction == "reverse" or d == 1
        source = _reversed(x, lengths) if backward else x
        y, final = _loop(source, [s[d] for s in states], lengths, cells(d))
        ys.append(_reversed(y, lengths) if backward else y)
        finals.append(final)
    merged = [torch.stack([f[i] for f in finals]) for i in range(len(states))]
    return torch.stack(ys, 1), merged


def _clipped(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else torch.clamp(x, -clip, clip)


def _biases(b: Tensor | None, d: int) -> tuple[Any, Any]:
    if b is None:
        return 0.0, 0.0
    first, second = b[d].chunk(2, 0)
    return first, second


def _is_default(names: list[str] | None, default: list[str]) -> bool:
    return names is None or [n.lower() for n in names] == default * (len(names) // len(default))


@op("LSTM", several=True, packed=partial(_packed, _LSTM_ORDER, _LSTM))
def _lstm(
    x: Tensor,
    w: Any,
    r: Any,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
    count: int,
    parameters: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    count_d = 2 if direction == "bidirectional" else 1
    x, (h0, c0) = _enter(x, layout, h0, c0)
    h, c = _state(h0, x, count_d, hidden_size), _state(c0, x, count_d, hidden_size)
    plain = _is_default(activations, _LSTM) and _follows_kernel(x)
    if plain and lengths is None and p is None and clip is None and not input_forget:
        source = x.flip(0) if direction == "reverse" else x
        y, h, c = torch.lstm(
            source,
            (h, c),
            *_kernel_parameters(w, r, b, _LSTM_ORDER, parameters, count_d),
            1,
            0.0,
            False,
            count_d == 2,
            False,
        )
        y = _sequence(y, count_d, hidden_size)
        y = y.flip(0) if direction == "reverse" else y
        return _finish(y, [h, c], layout, count)
    names = activations or _LSTM * count_d
    functions = _activations(names, activation_alpha, activation_beta)

    def cells(d: int) -> Cell:
        f, g, last = functions[3 * d : 3 * d + 3]
        bias = sum(_biases(b, d))
        peep = [0.0] * 3 if p is None else p[d].chunk(3, 0)

        def cell(step: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
            gates = step @ w[d].t() + hidden @ r[d].t() + bias
            i, o, forget, candidate = torch.split(gates, hidden_size, 1)
            i = f(_clipped(i + peep[0] * memory, clip))
            keep = 1 - i if input_forget else f(_clipped(forget + peep[2] * memory, clip))
            fresh = keep * memory + i * g(_clipped(candidate, clip))
            out = f(_clipped(o + peep[1] * fresh, clip))
            return out * last(fresh), fresh

        return cell

    y, states = _directions(x, [h, c], lengths, direction, cells)
    return _finish(y, states, layout, count)


@op("GRU", several=True, packed=_packed_gru)
def _gru(
    x: Tensor,
    w: Any,
    r: Any,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int,
    linear_before_reset: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
    count: int,
    parameters: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    count_d = 2 if direction == "bidirectional" else 1
    x, (h0,) = _enter(x, layout, h0)
    h = _state(h0, x, count_d, hidden_size)
    plain = _is_default(activations, _GRU) and _follows_kernel(x)
    if plain and linear_before_reset and lengths is None and clip is None:
        source = x.flip(0) if direction == "reverse" else x
        y, h = torch.gru(
            source,
            h,
            *_kernel_parameters(w, r, b, _GRU_ORDER, parameters, count_d),
            1,
            0.0,
            False,
            count_d == 2,
            False,
        )
        y = _sequence(y, count_d, hidden_size)
        y = y.flip(0) if direction == "reverse" else y
        return _finish(y, [h], layout, count)
    functions = _activations(activations or _GRU * count_d, activation_alpha, activation_beta)

    def cells(d: int) -> Cell:
        f, g = functions[2 * d : 2 * d + 2]
        first, second = _biases(b, d)

        def cell(step: Tensor, hidden: Tensor) -> tuple[Tensor]:
            wz, wr, wh = torch.split(step @ w[d].t() + first, hidden_size, 1)
            rz, rr, rh = (part for part in torch.split(r[d], hidden_size, 0))
            bz, br, bh = [0.0] * 3 if b is None else torch.split(second, hidden_size, 0)
            z = f(_clipped(wz + hidden @ rz.t() + bz, clip))
            reset = f(_clipped(wr + hidden @ rr.t() + br, clip))
            if linear_before_reset:
                inner = wh + reset * (hidden @ rh.t() + bh)
            else:
                inner = wh + (reset * hidden) @ rh.t() + bh
            return ((1 - z) * g(_clipped(inner, clip)) + z * hidden,)

        return cell

    y, states = _directions(x, [h], lengths, direction, cells)
    return _finish(y, states, layout, count)


@op("RNN", several=True, packed=partial(_packed, (0,), _RNN))
def _rnn(
    x: Tensor,
    w: Any,
    r: Any,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int,
    layout: int = 0,
    output_sequence: int = 0,
    count: int,
    parameters: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    count_d = 2 if direction == "bidirectional" else 1
    x, (h0,) = _enter(x, layout, h0)
    h = _state(h0, x, count_d, hidden_size)
    plain = _is_default(activations, _RNN) and _follows_kernel(x)
    if plain and lengths is None and clip is None:
        source = x.flip(0) if direction == "reverse" else x
        y, h = torch.rnn_tanh(
            source,
            h,
            *_kernel_parameters(w, r, b, (0,), parameters, count_d),
            1,
            0.0,
            False,
            count_d == 2,
            False,
        )
        y = _sequence(y, count_d, hidden_size)
        y = y.flip(0) if direction == "reverse" else y
        return _finish(y, [h], layout, count)
    functions = _activations(activations or _RNN * count_d, activation_alpha, activation_beta)

    def cells(d: int) -> Cell:
        bias: Any = sum(_biases(b, d))

        def cell(step: Tensor, hidden: Tensor) -> tuple[Tensor]:
            return (functions[d](_clipped(step @ w[d].t() + hidden @ r[d].t() + bias, clip)),)

        return cell

    y, states = _directions(x, [h], lengths, direction, cells)
    return _finish(y, states, layout, count)
