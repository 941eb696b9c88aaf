"""The parameter groups of weight decay, and SGD with the e-shifted L2 regularizer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, Optimizer

from models.gates import gates_of
from utils.common.errors import UserError
from utils.common.text import plural


class Owned(NamedTuple):
    """A parameter and its kind, which follows from the module that owns it."""

    name: str
    parameter: nn.Parameter
    kind: str  # conv, depthwise, fc, norm, bias, or own (its module declares that it has no decay)
    of_gate: bool = False  # whether it belongs to a gate

    @property
    def trained(self) -> bool:
        """Whether it gets a gradient."""
        return self.parameter.requires_grad


def classify(net: nn.Module) -> list[Owned]:
    """Return every parameter of a network with its kind, in registration order.

    A module with a method ``no_weight_decay() -> set[str]`` names its parameters that have no weight decay;
    only ``--wd-all`` decays them. Parameters of modules other than convolutions and linear layers scale or
    shift channels (batch norm, LayerNorm, SGE's weight) and have kind ``norm``.
    """
    declared = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in net.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    gates = tuple(f"{name}." for name in gates_of(net))
    return [
        Owned(name, value, "own" if name in declared else _kind(net, name), name.startswith(gates))
        for name, value in net.named_parameters()
    ]


def _kind(net: nn.Module, name: str) -> str:
    path, _, leaf = name.rpartition(".")
    if "bias" in leaf:
        return "bias"
    module = net.get_submodule(path)
    if isinstance(module, _ConvNd):
        # One channel that is a group is no depthwise convolution: ECA's runs over the channels themselves.
        return "depthwise" if module.groups == module.in_channels > 1 else "conv"
    return "fc" if isinstance(module, nn.Linear | nn.MultiheadAttention) else "norm"


KINDS = frozenset({"conv", "depthwise", "fc", "norm", "bias", "own"})


def decaying_kinds(wd_all: bool, nowd_bn: bool, nowd_fc: bool, nowd_conv: bool) -> frozenset[str]:
    """Return the kinds that decay under ``--wd-all``, ``--nowd-bn``, ``--nowd-fc`` and ``--nowd-conv``."""
    if wd_all:
        return KINDS
    switched = {"norm": nowd_bn, "fc": nowd_fc, "conv": nowd_conv, "depthwise": nowd_conv}
    return frozenset(kind for kind, off in switched.items() if not off)


@dataclass(frozen=True)
class WeightDecay:
    """What draws which parameters to 0 or, with e-shifted L2, to a sphere.

    Args:
        strength: weight decay of the kinds that decay.
        kinds: those kinds, as :func:`classify` names them.
        lam: strength of the e-shifted L2 on convolutions that are not depthwise; None: there is none.
        shift: its e.
    """

    strength: float
    kinds: frozenset[str] = KINDS
    lam: float | None = None
    shift: float = 0.0

    def shifted(self, kind: str) -> bool:
        """Whether a kind of parameters is under the e-shifted L2."""
        return kind == "conv" and self.lam is not None

    def text(self, kind: str) -> str:
        """Describe what a kind of parameters is under."""
        if self.shifted(kind):
            return f"e-shifted L2, lambda {self.lam:g}, e {self.shift:g}"
        return f"{self.strength:g}" if kind in self.kinds else "0"


def create_optimizer(
    net: nn.Module,
    decay: WeightDecay,
    lr: float,
    momentum: float,
    nesterov: bool = False,
    lr_gates: float | None = None,
) -> SGD:
    """Create SGD with the published groups of parameters, and print these as a table.

    The groups are, in this order, the parameters without and with decay; where all decay there is one group.
    Each is split in two by ``lr_gates``. Frozen parameters are in none.

    Args:
        net: the network.
        decay: of its weights.
        lr: learning rate.
        momentum: of SGD.
        nesterov: whether it is Nesterov's.
        lr_gates: factor on the learning rate of the gates; None: they have that of all others.

    Raises:
        UserError: no gate is trained that could have another rate; no convolution is trained that could be
            under the e-shifted L2.
    """
    owned = classify(net)
    trained = [one for one in owned if one.trained]
    groups: list[dict[str, Any]] = []
    for strength, decays in ((0.0, False), (decay.strength, True)):
        members = [one for one in trained if (one.kind in decay.kinds) == decays]
        for group, part in _by_rate(members, lr_gates):
            group["weight_decay"], group["shifted"] = strength, [decay.shifted(one.kind) for one in part]
            groups.append(group)
    print(describe_groups(owned, decay, lr_gates))
    check_rate_of_gates(trained, lr_gates)
    settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
    if decay.lam is None:
        return SGD(groups, fused=True, **settings)
    if not any(decay.shifted(one.kind) for one in trained):
        raise UserError("--el2: no convolution is trained that it could regularize; leave the flag out")
    return EShiftedSGD(groups, lam=decay.lam, shift=decay.shift, **settings)


def plain_groups(net: nn.Module, lr_gates: float | None = None) -> list[dict[str, Any]]:
    """Return the groups of an optimizer under whose weight decay all parameters are: one, or two.

    Print the factor of the gates' learning rate, if there is one.

    Args:
        net: the network; its frozen parameters are left out.
        lr_gates: as of :func:`create_optimizer`.

    Raises:
        UserError: no gate is trained that could have another rate.
    """
    trained = [one for one in classify(net) if one.trained]
    check_rate_of_gates(trained, lr_gates)
    if lr_gates is not None:
        tensors = plural(sum(one.of_gate for one in trained), "tensor")
        print(f"learning rate of the gates ({tensors}): times {lr_gates:g}")
    return [group for group, _ in _by_rate(trained, lr_gates)]


def _by_rate(
    members: Sequence[Owned], lr_gates: float | None
) -> Iterator[tuple[dict[str, Any], Sequence[Owned]]]:
    """Yield a group for each learning rate, with its members: first those that follow the schedule.

    A group whose learning rate is another one says so by a ``lr_factor``, which the trainer honours.
    """
    gates = [one for one in members if one.of_gate and lr_gates is not None]
    others = [one for one in members if not one.of_gate or lr_gates is None]
    for part, rate in ((others, {}), (gates, {"lr_factor": lr_gates})):
        if part:
            yield {"params": [(one.name, one.parameter) for one in part], **rate}, part


def check_rate_of_gates(owned: Sequence[Owned], lr_gates: float | None) -> None:
    """Refuse ``--lr-gates`` for a network of which no gate is trained.

    Raises:
        UserError: it is such a network.
    """
    if lr_gates is not None and not any(one.of_gate and one.trained for one in owned):
        text = "this network has no gates that are trained; leave the flag out, or give a network with gates"
        raise UserError(f"--lr-gates {lr_gates:g}: {text}, such as -a se_resnet50")


def parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return all parameters of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def start_momentum(optimizer: Optimizer) -> None:
    """Set the momentum of every parameter to 0, which gives the same first step as SGD without this.

    Otherwise the fused kernel starts from uninitialised memory when an overflow skips its first step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def describe_groups(owned: Iterable[Owned], decay: WeightDecay, lr_gates: float | None = None) -> str:
    """Return a table of the kinds of parameters: tensors, parameters, weight decay.

    Gates with a learning rate of their own and frozen parameters have rows of their own.
    """
    kinds: dict[tuple[str, str], list[int]] = {}
    for one in owned:
        rate = f", learning rate of gates times {lr_gates:g}" if one.of_gate and lr_gates is not None else ""
        row = (one.kind, decay.text(one.kind) + rate) if one.trained else ("frozen", "not trained")
        kinds.setdefault(row, []).append(one.parameter.numel())
    rows = [f"{'kind':>10} {'tensors':>8} {'parameters':>12}   weight decay"]
    rows += [f"{kind:>10} {len(of):>8} {sum(of):>12,}   {text}" for (kind, text), of in kinds.items()]
    return "\n".join(rows)


class EShiftedSGD(SGD):
    """SGD that pulls convolution filters towards a sphere of standard deviation e rather than towards 0.

    For a filter w with mean mu and (unbiased) standard deviation s over its n weights, the penalty is
    ``lam / 2 * ((||w - mu|| - e * sqrt(n - 1))^2 + n * mu^2)``; its gradient is
    ``lam * ((1 - e / s) * (w - mu) + mu)``. e = 0 is plain L2.

    Li et al., Understanding the Disharmony between Weight Normalization Family and Weight Decay,
    arXiv 1911.05920.

    Args:
        groups: torch's parameter groups, each with a list ``shifted`` of bool that marks the regularized ones
            of its ``params``: weights (C_out, C_in / groups, ...) with at least two entries per filter, and
            with weight decay 0.
        lam: strength of the regularizer, which replaces weight decay.
        shift: e, the target standard deviation; a filter with less is pushed outwards.
        together: add the regularizer's gradient for all layers at once, in few kernels and with a copy of the
            weights, rather than layer by layer; None: on a GPU, where each kernel costs. On a CPU the copy
            costs more.
        **settings: ``lr``, ``momentum``, ``nesterov``, ``dampening``.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lam: float,
        shift: float,
        together: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(groups, fused=True, **settings)
        self.lam, self.shift, self.together = lam, shift, together

    def filters(self) -> list[nn.Parameter]:
        """Return the regularized convolution weights, in registration order."""
        groups = self.param_groups
        return [weight for group in groups for weight in compress(group["params"], group["shifted"])]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Add the regularizer's gradient to the loss's gradient (in ``.grad``) and take a step."""
        with torch.enable_grad():
            loss = closure() if closure else None
        weights = [weight for weight in self.filters() if weight.grad is not None]
        together = weights[0].is_cuda if self.together is None else self.together
        if together and all(map(_filters_are_rows, weights)):
            self._regularize_together(weights)
        else:
            self._regularize_each(weights)
        super().step()
        return loss

    def _regularize_each(self, weights: Sequence[nn.Parameter]) -> None:
        """Add the regularizer's gradient to ``.grad`` with four kernels for each weight.

        This takes four passes over memory; torch.var_mean alone takes as long as eight on a CPU.
        """
        means, norms = [], []
        for weight in weights:  # both per weight: the second then reads the weight from the cache
            means.append(weight.flatten(1).mean(dim=1))
            norms.append(torch.linalg.vector_norm(weight.flatten(1), dim=1))
        terms = self._factors_and_shifts(means, norms, [weight[0].numel() for weight in weights])
        for weight, factor, shift in zip(weights, *terms, strict=True):
            assert weight.grad is not None
            of_filter = (-1, *(1,) * (weight.dim() - 1))
            weight.grad.addcmul_(weight, factor.view(of_filter), value=self.lam)
            weight.grad.add_(shift.view(of_filter), alpha=self.lam)

    def _regularize_together(self, weights: Sequence[nn.Parameter]) -> None:
        """Do the same with three kernels for each number of weights per filter; a network has about ten.

        It takes memory for a copy of the weights. All kinds of layers lie one behind the other in it, each
        with its filters as the rows of a matrix.
        """
        kinds: dict[int, list[nn.Parameter]] = {}
        for weight in weights:
            kinds.setdefault(weight[0].numel(), []).append(weight)
        ordered = [weight for kind in kinds.values() for weight in kind]
        copy = torch.cat([weight.as_strided((weight.numel(),), (1,)) for weight in ordered])
        sizes = [sum(map(torch.numel, kind)) for kind in kinds.values()]
        matrices = [part.view(-1, count) for part, count in zip(copy.split(sizes), kinds, strict=True)]
        means = [matrix.mean(dim=1) for matrix in matrices]
        norms = [torch.linalg.vector_norm(matrix, dim=1) for matrix in matrices]
        terms = self._factors_and_shifts(means, norms, list(kinds))
        for matrix, factor, shift in zip(matrices, *terms, strict=True):
            torch.addcmul(shift[:, None], matrix, factor[:, None], out=matrix)
        added = copy.split([weight.numel() for weight in ordered])
        as_weights = [
            part.as_strided(weight.shape, weight.stride())
            for part, weight in zip(added, ordered, strict=True)
        ]
        torch._foreach_add_([w.grad for w in ordered if w.grad is not None], as_weights, alpha=self.lam)

    def _factors_and_shifts(
        self, means: Sequence[Tensor], norms: list[Tensor], counts: Sequence[int]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return ``1 - e / s`` and ``e / s * mu``: the gradient is the first times w, plus the second.

        All is computed in one vector of all filters, so that there are few small operations.

        Args:
            means: of filters with as many weights, (filters,).
            norms: of the same filters, which are overwritten.
            counts: how many weights they have.
        """
        mean = torch.cat(list(means))
        torch._foreach_div_(norms, [count**0.5 for count in counts])
        square = torch.cat(norms).square_()
        variance = (square - mean * mean).clamp_min_(0)  # biased, corrected below
        # e / s is computed as e s / s^2. In a filter of equal weights the variance is only rounding error,
        # about eps times the mean square, and there is no direction to push: do not divide by it.
        rounding = torch.finfo(mean.dtype).eps * square + torch.finfo(mean.dtype).tiny
        pull = self.shift * variance.sqrt() / (variance + rounding)
        sizes = [len(one) for one in means]
        torch._foreach_mul_(list(pull.split(sizes)), [((count - 1) / count) ** 0.5 for count in counts])
        return (1 - pull).split(sizes), (pull * mean).split(sizes)

    def filter_stds(self) -> list[float]:
        """Return the mean standard deviation of each weight's filters, in registration order."""
        means = [weight.detach().flatten(1).std(dim=1).mean() for weight in self.filters()]
        return torch.stack(means).tolist()


def _filters_are_rows(weight: Tensor) -> bool:
    """Whether each filter's weights lie together, without gaps, in an order that all filters have."""
    formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    return any(weight.is_contiguous(memory_format=layout) for layout in formats)
