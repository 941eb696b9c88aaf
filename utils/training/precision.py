"""Mixed precision by the levels of NVIDIA Apex's amp, on torch.amp; or Apex itself where it still has amp."""

import argparse
import importlib
from collections.abc import Mapping
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


class Precision:
    """What is computed in which type, and how the loss is scaled.

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

    def __init__(
        self,
        level: str = "O0",
        half: torch.dtype = torch.float16,
        keep_batchnorm: bool = True,
        loss_scale: float | str = 1.0,
        device: str = "cpu",
    ) -> None:
        self.level, self.half, self.keep_batchnorm, self.device = level, half, keep_batchnorm, device
        self.loss_scale = loss_scale
        self.scaler = GradScaler(device, enabled=loss_scale == "dynamic")

    def __str__(self) -> str:
        if self.level == "O0":
            return "O0 (float32)"
        norm = f", {'float32' if self.keep_batchnorm else 'half'} batch norm" if self.level > "O1" else ""
        scale = self.loss_scale if isinstance(self.loss_scale, str) else f"{self.loss_scale:g}"
        return f"{self.level} ({str(self.half).removeprefix('torch.')}{norm}, loss scale {scale})"

    @property
    def scale(self) -> float:
        """The fixed factor on the loss."""
        return 1.0 if isinstance(self.loss_scale, str) else self.loss_scale

    def prepare(self, net: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
        """The network to call, around ``net``, whose weights stay those to save; load them before."""
        if self.level == "O2":
            return HalfWeights(net, self.half, self.keep_batchnorm)
        if self.level == "O3":
            cast_weights(net, self.half, self.keep_batchnorm)
            return HalfInput(net, self.half)
        return net

    def distribute(self, model: nn.Module, ranks: Ranks) -> nn.Module:
        """Average the gradients of the prepared network over the processes."""
        return ranks.wrap(model)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits (B, K) in float32."""
        with self.autocast():
            return model(images).float()

    def autocast(self) -> torch.autocast:
        """Within it O1 computes in half where that is safe; for networks that are more than logits."""
        return torch.autocast(self.device, self.half, enabled=self.level == "O1")

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        """Add the gradients of a loss to ``.grad``, scaled until :meth:`unscale`."""
        self.scaler.scale(loss * self.scale).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the loss scale, before they are clipped."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        elif self.scale != 1:
            torch._foreach_mul_([p.grad for p in parameters(optimizer) if p.grad is not None], 1 / self.scale)

    def step(self, optimizer: Optimizer) -> None:
        """Step on unscaled gradients; with a dynamic scale a step that overflowed is left out."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The dynamic loss scale, to continue exactly; empty if there is none."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with a saved loss scale; nothing to do where none was saved or none is used."""
        if state and self.scaler.is_enabled():
            wanted = self.scaler.state_dict()
            if set(state) != set(wanted) or not all(isinstance(v, int | float) for v in state.values()):
                raise UserError("--resume: the file's loss scale is of another kind; --fresh-optimizer")
            self.scaler.load_state_dict(dict(state))


def cast_weights(net: nn.Module, half: torch.dtype, keep_batchnorm: bool) -> None:
    """Store the weights in half precision, those of batch norm only on demand."""
    net.to(half)
    if keep_batchnorm:
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.float()


class HalfInput(nn.Module):
    """A half-precision network that takes float32 images."""

    def __init__(self, net: nn.Module, half: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, half

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.dtype))


class HalfWeights(nn.Module):
    """A network of float32 weights that computes with their half-precision values.

    The cast is part of the graph, so the float32 weights ("master weights") are what gradients arrive at and
    what the optimizer, the averages and the checkpoints see.
    """

    def __init__(self, net: nn.Module, half: torch.dtype, keep_batchnorm: bool) -> None:
        super().__init__()
        self.net, self.dtype = net, half
        norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        statistics = [buffer for module in norms for buffer in module.buffers()]
        self.kept = {id(buffer) for buffer in statistics}  # batch norm changes them in place
        if keep_batchnorm:
            self.kept |= {id(parameter) for module in norms for parameter in module.parameters()}
            return
        for buffer in statistics:  # they must be of the weights' type
            buffer.data = buffer.data.to(half) if buffer.is_floating_point() else buffer.data

    def forward(self, x: Tensor) -> Tensor:
        tensors = (*self.net.named_parameters(), *self.net.named_buffers())
        half = {
            name: value.to(self.dtype)
            for name, value in tensors
            if value.is_floating_point() and id(value) not in self.kept
        }
        return functional_call(self.net, half, (x.to(self.dtype),))


class ApexPrecision(Precision):
    """The same levels by NVIDIA Apex's own amp and DistributedDataParallel (Apex up to May 2025).

    Args:
        level: O0, O1, O2 or O3.
        keep_batchnorm: for O2 and O3; None leaves Apex's default.
        loss_scale: a number or ``"dynamic"``; None leaves Apex's default.

    Raises:
        UserError: no such Apex is installed.
    """

    def __init__(self, level: str, keep_batchnorm: bool | None, loss_scale: float | str | None) -> None:
        super().__init__("O0")
        self.apex_level, self.apex_keep, self.apex_scale = level, keep_batchnorm, loss_scale
        try:
            self.amp = importlib.import_module("apex.amp")
            self.parallel = importlib.import_module("apex.parallel").DistributedDataParallel
        except (ImportError, AttributeError):
            raise UserError(
                "--amp-backend apex: no NVIDIA Apex with amp is installed (Apex removed it in May 2025; the "
                "package 'apex' on PyPI is another project); leave the flag out to use torch's own"
            ) from None

    def __str__(self) -> str:
        return f"{self.apex_level} by Apex"

    def prepare(self, net: nn.Module, optimizer: Optimizer | None = None) -> nn.Module:
        settings = {"keep_batchnorm_fp32": self.apex_keep, "loss_scale": self.apex_scale}
        prepared = self.amp.initialize(net, optimizer, opt_level=self.apex_level, **settings)
        return prepared if optimizer is None else prepared[0]

    def distribute(self, model: nn.Module, ranks: Ranks) -> nn.Module:
        return self.parallel(model, delay_allreduce=True) if ranks.size > 1 else model

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        with self.amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Apex has unscaled them in :meth:`backward`."""

    def step(self, optimizer: Optimizer) -> None:
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self.amp.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.amp.load_state_dict(dict(state))


def choose_precision(args: argparse.Namespace, device: str) -> Precision:
    """What ``--opt-level`` and its companions mean on a device, ``cpu`` or ``cuda``.

    Raises:
        UserError: a flag does not go with the level, or Apex is asked for and absent.
    """
    level = args.opt_level = args.opt_level or ("O2" if device == "cuda" else "O0")  # checkpoints say it
    flags = {"--loss-scale": args.loss_scale, "--amp-dtype": args.amp_dtype}
    given = [flag for flag, value in flags.items() if value is not None]
    if level == "O0" and given:
        raise UserError(f"{given[0]} does nothing in --opt-level O0, which computes in float32")
    if level in ("O0", "O1") and args.keep_batchnorm_fp32 is not None:
        raise UserError(
            f"--keep-batchnorm-fp32 is for --opt-level O2 and O3; in {level} it is in float32 anyway"
        )
    if args.amp_backend == "apex":
        if args.amp_dtype == "bfloat16" or device == "cpu":
            raise UserError("--amp-backend apex: Apex's amp computes in float16 on CUDA only")
        return ApexPrecision(level, args.keep_batchnorm_fp32, args.loss_scale)
    half = getattr(torch, args.amp_dtype or ("float16" if device == "cuda" else "bfloat16"))
    keep = level != "O3" if args.keep_batchnorm_fp32 is None else args.keep_batchnorm_fp32
    scale = args.loss_scale
    if scale is None:
        scale = "dynamic" if half == torch.float16 and level in ("O1", "O2") else 1.0
    if scale == "dynamic" and level == "O3":
        raise UserError("--loss-scale dynamic needs float32 weights: give a number in O3, or use O2")
    return Precision(level, half, keep, scale, device)
