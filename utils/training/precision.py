"""Mixed precision by the levels of NVIDIA Apex's amp, on torch.amp."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from utils.common.distributed import Ranks
from utils.common.errors import UserError
from utils.training.optim import parameters

_CASTS = 8  # groups of weights that O2 casts


@dataclass
class Precision:
    """The types in which a network computes, and the scale of the loss.

    ======  ==================  ===========================  =================================
    level   weights             activations                  batch norm
    ======  ==================  ===========================  =================================
    O0      float32             float32                      float32
    O1      float32             half where it is safe        float32 (autocast)
    O2      float32, cast to    half                         float32 (``keep_batchnorm``)
            half for each use
    O3      half                half                         half (or ``keep_batchnorm``)
    ======  ==================  ===========================  =================================

    The optimizer sees float32 weights but in O3. Losses are reported unscaled.

    Args:
        level: O0, O1, O2 or O3.
        half: the half type, float16 or bfloat16.
        keep_batchnorm: batch norm in float32, in O2 and O3.
        loss_scale: factor on the loss before backward, ``"dynamic"`` to have it adapted (not in O3).
        device: ``cpu`` or ``cuda``.
    """

    level: str = "O0"
    half: torch.dtype = torch.float16
    keep_batchnorm: bool = True
    loss_scale: float | str = 1.0
    device: str = "cpu"
    runs_ahead = True  # whether no step waits for the device

    def __post_init__(self) -> None:
        self.scaler = GradScaler(self.device, enabled=self.loss_scale == "dynamic")
        self.scale = 1.0 if isinstance(self.loss_scale, str) else self.loss_scale  # the fixed factor

    def __str__(self) -> str:
        if self.level == "O0":
            return "O0 (float32)"
        norm = f", {'float32' if self.keep_batchnorm else 'half'} batch norm" if self.level > "O1" else ""
        scale = self.loss_scale if isinstance(self.loss_scale, str) else f"{self.loss_scale:g}"
        return f"{self.level} ({str(self.half).removeprefix('torch.')}{norm}, loss scale {scale})"

    def prepare(self, net: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
        """Return the network to call; ``net`` keeps the weights to save. Load weights before."""
        if self.level == "O2":
            return HalfWeights(net, self.half, self.keep_batchnorm)
        if self.level == "O3":
            net.to(self.half)
            for module in batch_norms(net) if self.keep_batchnorm else ():
                module.float()
            net.register_forward_pre_hook(lambda _, images: (images[0].to(self.half),))
        return net

    def distribute(self, model: nn.Module, ranks: Ranks) -> nn.Module:
        """Average the gradients of the prepared network over the processes."""
        return ranks.wrap(model)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return logits (B, K) in float32."""
        with self.autocast():
            return model(images).float()

    def autocast(self) -> torch.autocast:
        """Return the context in which O1 computes in half, for networks that return more than logits."""
        return torch.autocast(self.device, self.half, enabled=self.level == "O1")

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        """Add the gradients of a loss to ``.grad``, scaled until :meth:`unscale`."""
        self.scaler.scale(loss * self.scale if self.scale != 1 else loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the loss scale, before they are clipped."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        elif self.scale != 1:
            torch._foreach_mul_([p.grad for p in parameters(optimizer) if p.grad is not None], 1 / self.scale)

    def step(self, optimizer: Optimizer, bad: Tensor | None = None) -> None:
        """Step with unscaled gradients; with a dynamic scale, skip a step that overflowed.

        Args:
            optimizer: a fused one, if there is a flag.
            bad: a flag on the device; if it is 1 there, weights and momentum stay what they are.
        """
        if bad is not None and self.scaler.is_enabled():
            for overflow in self.scaler._found_inf_per_device(optimizer).values():
                torch.maximum(overflow, bad, out=overflow)
        elif bad is not None:
            optimizer.found_inf = bad  # type: ignore[attr-defined]  # torch's name for such a flag
        self.scaler.step(optimizer)
        self.scaler.update()
        if bad is not None and not self.scaler.is_enabled():
            del optimizer.found_inf  # type: ignore[attr-defined]

    def scale_tensors(self) -> list[Tensor]:
        """Return the tensors on the device that a dynamic loss scale consists of, none of a fixed one."""
        if not self.scaler.is_enabled():
            return []
        self.scaler.scale(torch.zeros((), device=self.device))  # torch makes them at the first use
        tensors = (self.scaler._scale, self.scaler._growth_tracker)
        return [tensor for tensor in tensors if tensor is not None]

    def state_dict(self) -> dict[str, Any]:
        """Return the dynamic loss scale, to resume exactly; empty if there is none."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved loss scale, if one was saved and one is used."""
        if state and self.scaler.is_enabled():
            wanted = self.scaler.state_dict()
            if set(state) != set(wanted) or not all(isinstance(v, int | float) for v in state.values()):
                raise UserError("--resume: the file's loss scale is of another kind; --fresh-optimizer")
            self.scaler.load_state_dict(dict(state))


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """Return the batch norms of a network."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


class HalfWeights(nn.Module):
    """A network with float32 weights that computes with their half-precision values.

    The cast is part of the graph, so the float32 weights ("master weights") are what gradients arrive at and
    what the optimizer, the averages and the checkpoints see.

    The weights are cast in ``_CASTS`` groups of neighbouring layers, each in one kernel. A single group would
    hold back all gradients until the first layer's is there; DistributedDataParallel could then exchange
    none of them during the backward pass.
    """

    def __init__(self, net: nn.Module, half: torch.dtype, keep_batchnorm: bool) -> None:
        super().__init__()
        self.net, self.dtype = net, half
        norms = batch_norms(net)
        statistics = [buffer for module in norms for buffer in module.buffers()]
        self.kept = {id(buffer) for buffer in statistics}  # batch norm changes them in place
        if keep_batchnorm:
            self.kept |= {id(parameter) for module in norms for parameter in module.parameters()}
            return
        for buffer in statistics:  # they must be of the weights' type
            buffer.data = buffer.data.to(half) if buffer.is_floating_point() else buffer.data

    def forward(self, x: Tensor) -> Tensor:
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        to_cast = {k: v for k, v in tensors.items() if v.is_floating_point() and id(v) not in self.kept}
        groups = _groups_of_size(list(to_cast.values()), _CASTS)
        half = [value for group in groups for value in Cast.apply(self.dtype, *group)]
        return functional_call(self.net, dict(zip(to_cast, half, strict=True)), (x.to(self.dtype),))


class Cast(torch.autograd.Function):
    """Cast tensors of one type to another type, ``Cast.apply(dtype, *tensors)``: one kernel each way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(cast, tensors)
        fixed = [one for one, tensor in zip(cast, tensors, strict=True) if not tensor.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return tuple(cast)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients if gradient is not None]
        cast = iter(Cast.apply(ctx.dtype, *given) if given else ())
        return None, *(None if gradient is None else next(cast) for gradient in gradients)


def _groups_of_size(tensors: Sequence[Tensor], most: int) -> list[list[Tensor]]:
    """Divide tensors, in their order, into groups of about the same size, at most ``most``."""
    groups: dict[int, list[Tensor]] = {}
    total, before = sum(tensor.numel() for tensor in tensors), 0
    for tensor in tensors:
        groups.setdefault(most * before // total, []).append(tensor)
        before += tensor.numel()
    return list(groups.values())


def choose_precision(
    level: str,
    device: str,
    amp_dtype: str | None = None,
    loss_scale: float | str | None = None,
    keep_batchnorm: bool | None = None,
) -> Precision:
    """Return the precision of ``--opt-level`` and the flags that say more about it.

    Args:
        level: O0, O1, O2 or O3.
        device: ``cpu`` or ``cuda``.
        amp_dtype: the half type; None: float16 on CUDA, bfloat16 on a CPU.
        loss_scale: a number, ``dynamic``, or None: dynamic for float16 in O1 and O2, otherwise 1.
        keep_batchnorm: batch norm in float32; None: in O2.

    Raises:
        UserError: a flag does not go with the level.
    """
    for flag, value in (("--loss-scale", loss_scale), ("--amp-dtype", amp_dtype)):
        if level == "O0" and value is not None:
            raise UserError(f"{flag} does nothing in --opt-level O0, which computes in float32")
    if level in ("O0", "O1") and keep_batchnorm is not None:
        text = f"is for --opt-level O2 and O3; in {level} it is in float32 anyway"
        raise UserError(f"--keep-batchnorm-fp32 {text}")
    half = getattr(torch, amp_dtype or ("float16" if device == "cuda" else "bfloat16"))
    keep = level != "O3" if keep_batchnorm is None else keep_batchnorm
    if loss_scale is None:
        loss_scale = "dynamic" if half == torch.float16 and level in ("O1", "O2") else 1.0
    if loss_scale == "dynamic" and level == "O3":
        raise UserError("--loss-scale dynamic needs float32 weights: give a number in O3, or use O2")
    return Precision(level, half, keep, loss_scale, device)
