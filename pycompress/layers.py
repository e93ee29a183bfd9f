"""Torch modules that hold packed weights, and why each layer of a model is packed or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import kernels, torch_ops
from .codes import decode_nonzeros, encode_nonzeros
from .formats import Format, Int4, Int8, code_bits
from .kernels.ops import Activation, activation_code


@dataclass(frozen=True)
class LayerDecision:
    """What became of one layer, and why.

    Attributes
    ----------
    name : str
        Name of the layer in its model.
    kind : str
        Type of the layer it was, such as ``"Linear"`` or ``"Linear+ReLU"``.
    format : Int8, Int4, Codebook, Binary, Sparse or None
        How the weight is stored; None: the layer stays dense.
    kernel : str or None
        The kernel that runs, such as ``"native/avx2"``; None: torch's own.
    rows : int or None
        Rows of input that the layer was timed on, all calls of one forward pass together.
    dense_us, packed_us : float or None
        Median microseconds of the dense layer and of the packed one (the best candidate, also where it lost).
    speedup, low, high : float or None
        Median of the paired ratios dense / packed and its 95 % interval.
    reason : str

    Examples
    --------
    >>> LayerDecision("fc", "Linear", reason="never called by example_inputs").format is None
    True
    """

    name: str
    kind: str
    format: Format | None = None
    kernel: str | None = None
    rows: int | None = None
    dense_us: float | None = None
    packed_us: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


class PackedLayer(nn.Module):
    """What layers on packed weights have in common: for inference only, without parameters and buffers.

    ``.to()`` and ``.half()`` leave such a layer as it is. ``state_dict``, pickles and copies hold the canonical form of
    the weights, which are packed again for the CPU that loads them. A subclass says what that form is:
    :meth:`canonical_tensors` and :meth:`repacked`.

    Parameters
    ----------
    packed : object
        Packed weights, of the type that the subclass checks.
    decision : LayerDecision, optional
        Why the layer is packed.

    Examples
    --------
    >>> issubclass(PackedLinear, PackedLayer)
    True
    """

    packed: Any

    def __init__(self, packed: object, decision: LayerDecision | None = None) -> None:
        super().__init__()
        self.packed = packed
        self.decision = decision

    @property
    def format(self) -> Format:
        """How the weights are stored."""
        format: Format = self.packed.format
        return format

    @property
    def kernel(self) -> str:
        """The kernel that runs."""
        return str(self.packed.kernel)

    @property
    def sizes(self) -> str:
        """Inputs and outputs, for messages."""
        raise NotImplementedError

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        raise NotImplementedError

    def repacked(self, tensors: dict[str, Any]) -> Any:
        """Pack tensors that stand for the canonical ones; all checks are here, as they may come from anywhere."""
        raise NotImplementedError

    def _check_input(self, x: object, name: str = "x") -> None:
        if type(x) is Tensor and not x.requires_grad:
            return
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch CPU tensor, got {type(x).__name__}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} must not require grad: {type(self).__name__}({self.sizes}) is for inference only; "
                "train the dense model and pack it afterwards, or call this one under torch.no_grad()"
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.canonical_tensors().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # torch's own part runs the hooks; it knows no names of ours, so that its strictness stays off.
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, False, missing_keys, unexpected_keys, error_msgs
        )
        tensors = self.canonical_tensors()
        if strict:
            missing_keys.extend(prefix + name for name in tensors if prefix + name not in state_dict)
            names = (key.removeprefix(prefix) for key in state_dict if key.startswith(prefix))
            unexpected_keys.extend(prefix + name for name in names if name not in tensors)
        tensors |= {name: state_dict[prefix + name] for name in tensors if prefix + name in state_dict}
        try:
            self.packed = self.repacked(tensors)
        except (TypeError, ValueError) as error:
            error_msgs.append(f"While loading {prefix.removesuffix('.') or type(self).__name__}: {error}")


class PackedLinear(PackedLayer):
    """A linear layer on a packed weight: ``y = activation(x @ w.T + bias)``, for inference only.

    Has no parameters and no buffers: ``.to()`` and ``.half()`` leave it as it is, and it takes float32, float16 and
    bfloat16 inputs. ``state_dict``, pickles and copies hold the canonical form of the weight (see Notes), which is
    packed again for the CPU that loads it.

    Parameters
    ----------
    packed : PackedWeight
        From :func:`pycompress.kernels.pack`.
    activation : None, "relu", "gelu", "silu", "tanh" or "sigmoid"
        Applied by the kernel.
    decision : LayerDecision, optional
        Why the layer is packed.

    Attributes
    ----------
    in_features, out_features : int

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value.

    Notes
    -----
    ``state_dict`` holds ``weight`` [out, in] int8 for Int8 and Binary; for Sparse the ``weight_gaps`` uint8 and
    ``weight_values`` (int8 where there is a scale, else float32) of :func:`pycompress.codes.encode_nonzeros`; and,
    where they exist, ``scale`` [out], ``bias`` [out] and ``input_scale`` [], float32. For Int4 and Codebook ``weight``
    [out, in] int8, ``scale`` [out, groups] float16 and, with zero points, ``zero_point`` [out, groups] uint8; or
    ``scale`` [out] float32 and ``multiplier`` [out, groups] uint8. Loading needs the same keys.

    Examples
    --------
    >>> layer = PackedLinear(kernels.pack(torch.eye(2) * 2, Int8(), bias=torch.tensor([0.0, -1.0])), "relu")
    >>> layer(torch.tensor([[0.0, 127.0], [127.0, 0.0]])).round()
    tensor([[  0., 253.],
            [254.,   0.]])
    """

    packed: kernels.PackedWeight

    def __init__(
        self,
        packed: kernels.PackedWeight,
        activation: Activation | None = None,
        decision: LayerDecision | None = None,
    ) -> None:
        if not isinstance(packed, kernels.PackedWeight):
            raise TypeError(f"packed must be a PackedWeight, got {type(packed).__name__}")
        activation_code(activation)
        super().__init__(packed, decision)
        self.activation = activation

    @property
    def in_features(self) -> int:
        """Size of the last dimension of the input."""
        return self.packed.shape[1]

    @property
    def out_features(self) -> int:
        """Size of the last dimension of the output."""
        return self.packed.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features] with the weight; returns [..., out_features] of x's dtype.

        Raises
        ------
        TypeError, ValueError
            When x does not fit, or requires grad while grad mode is on.
        """
        self._check_input(x)
        if torch.compiler.is_compiling():
            return torch_ops.traced_linear(x, self.packed, self.activation)
        y: Tensor = kernels.linear(x, self.packed, self.activation)
        return y

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, format={self.packed.format}, "
            f"bias={self.packed.bias is not None}, activation={self.activation!r}, kernel={self.packed.kernel!r}"
        )

    @property
    def sizes(self) -> str:
        """Inputs and outputs, for messages."""
        return f"{self.in_features} -> {self.out_features}"

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        return _canonical_tensors(self.packed)

    def repacked(self, tensors: dict[str, Any]) -> kernels.PackedWeight:
        """Pack tensors that stand for the canonical ones."""
        return _repacked(self.packed, tensors)


def arrays_like(present: dict[str, Tensor], tensors: dict[str, Any]) -> dict[str, Any]:
    """Return tensors as arrays, after checking their types, dtypes and shapes against those of the present ones.

    Examples
    --------
    >>> arrays_like({"scale": torch.ones(1)}, {"scale": torch.tensor([2.0])})
    {'scale': array([2.], dtype=float32)}
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype != present[name].dtype:
            raise TypeError(f"{name} must be {present[name].dtype}, got {tensor.dtype}")
        coded = name in ("weight_gaps", "weight_values")
        if tensor.shape != present[name].shape and not (coded and tensor.ndim == 1):
            raise ValueError(
                f"size mismatch for {name}: must be {tuple(present[name].shape)}, got {tuple(tensor.shape)}"
            )
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}


def _canonical_tensors(packed: kernels.PackedWeight) -> dict[str, Tensor]:
    weight = packed.canonical_weight()
    if isinstance(packed.format, (Int8, Int4)) or code_bits(packed.format) is not None:
        tensors = {"weight": torch.from_numpy(weight)}
    else:
        gaps, values = encode_nonzeros(weight)
        tensors = {"weight_gaps": torch.from_numpy(gaps), "weight_values": torch.from_numpy(values)}
    for name in ("scale", "bias", "input_scale"):
        value = getattr(packed, name)
        if value is not None:
            tensors[name] = torch.tensor(value, dtype=None if name == "scale" else torch.float32)
    for name, side in (("zero_point", packed.zero_point), ("multiplier", packed.multiplier)):
        if side is not None:
            tensors[name] = torch.tensor(side)
    return tensors


def _repacked(packed: kernels.PackedWeight, tensors: dict[str, Any]) -> kernels.PackedWeight:
    arrays = arrays_like(_canonical_tensors(packed), tensors)
    if "weight" in arrays:
        weight = arrays["weight"]
    else:
        weight = decode_nonzeros(arrays["weight_gaps"], arrays["weight_values"], packed.shape)
    input_scale = float(arrays["input_scale"]) if "input_scale" in arrays else None
    sides = {name: arrays[name] for name in ("zero_point", "multiplier") if name in arrays}
    return kernels.pack(weight, packed.format, arrays.get("bias"), arrays.get("scale"), input_scale, **sides)


_ATTRIBUTE = "_pack_decision"


def set_decision(module: nn.Module, decision: LayerDecision | None) -> None:
    """Record on a module what became of it; copies and pickles keep it, ``state_dict`` does not hold it.

    Parameters
    ----------
    module : nn.Module
        A packed layer, or one that stays dense.
    decision : LayerDecision or None

    Raises
    ------
    TypeError
        When an argument has another type.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> set_decision(layer, LayerDecision("", "Linear", reason="not faster"))
    >>> decisions(layer)[""].reason
    'not faster'
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    if decision is not None and not isinstance(decision, LayerDecision):
        raise TypeError(f"decision must be a LayerDecision or None, got {type(decision).__name__}")
    setattr(module, "decision" if isinstance(module, PackedLayer) else _ATTRIBUTE, decision)


def decisions(model: nn.Module) -> dict[str, LayerDecision]:
    """Return the decisions recorded in a model, by the names that the layers have in it now.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict
        Name to LayerDecision, in the order of ``named_modules``; a module used twice counts once.

    Raises
    ------
    TypeError
        When model is not an nn.Module.

    Examples
    --------
    >>> decisions(nn.Linear(2, 2))
    {}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    found: dict[str, LayerDecision] = {}
    for name, module in model.named_modules():
        decision = module.decision if isinstance(module, PackedLayer) else module.__dict__.get(_ATTRIBUTE)
        if isinstance(decision, LayerDecision):
            found[name] = replace(decision, name=name)
    return found
