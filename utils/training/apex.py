"""Mixed precision by NVIDIA Apex, for installations that still have amp (up to May 2025)."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from utils.common.distributed import Ranks
from utils.common.errors import UserError
from utils.training.precision import Precision, choose_precision


class ApexPrecision(Precision):
    """The same levels by NVIDIA Apex's own amp and DistributedDataParallel (Apex up to May 2025).

    Apex reads in every step whether its loss scale overflowed, and adapts it where no snapshot reaches.

    Args:
        level: O0, O1, O2 or O3.
        keep_batchnorm: for O2 and O3; None leaves Apex's default.
        loss_scale: a number or ``"dynamic"``; None leaves Apex's default.

    Raises:
        UserError: no such Apex is installed.
    """

    runs_ahead = False

    def __init__(self, level: str, keep_batchnorm: bool | None, loss_scale: float | str | None) -> None:
        super().__init__("O0")
        self.apex_level, self.apex_keep, self.apex_scale = level, keep_batchnorm, loss_scale
        try:
            self.amp = importlib.import_module("apex.amp")
            self.parallel = importlib.import_module("apex.parallel").DistributedDataParallel
        except (ImportError, AttributeError):
            why = "Apex removed it in May 2025; the package 'apex' on PyPI is another project"
            text = f"no NVIDIA Apex with amp is installed ({why}); leave the flag out to use torch's own"
            raise UserError(f"--amp-backend apex: {text}") from None

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

    def step(self, optimizer: Optimizer, bad: Tensor | None = None) -> None:
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self.amp.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.amp.load_state_dict(dict(state))


def choose_apex(
    level: str, device: str, amp_dtype: str | None, scale: float | str | None, keep: bool | None
) -> ApexPrecision:
    """Return the precision of ``--amp-backend apex``; arguments as of ``precision.choose_precision``.

    Raises:
        UserError: Apex is absent, or cannot do what the flags say.
    """
    choose_precision(level, "cpu", amp_dtype, scale, keep)  # refuses the same flags
    if amp_dtype == "bfloat16" or device == "cpu":
        raise UserError("--amp-backend apex: Apex's amp computes in float16 on CUDA only")
    return ApexPrecision(level, keep, scale)
