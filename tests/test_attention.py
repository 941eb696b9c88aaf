"""Attention modules alone: the fast forms against the formulas, the formulas against the papers."""

import pytest
import torch
from torch import Tensor, nn

from models import create_model
from models.resnet_bam import BAM
from models.resnet_cbam import CBAM
from models.resnet_se import SELayer
from models.resnet_sge import SpatialGroupEnhance


def value_and_gradients(module: nn.Module, forward: str, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    out = getattr(module, forward)(x)
    (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("module", [SELayer(32), CBAM(32), BAM(32), SpatialGroupEnhance(8)])
def test_what_runs_eagerly_equals_the_formula(module: nn.Module, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 32, 6, 5, dtype=torch.float64).to(memory_format=layout)
    ours, formula = (value_and_gradients(module, forward, x) for forward in ("forward", "formula"))
    assert module(x).is_contiguous(memory_format=layout)
    assert len(ours) == len(formula) == 2 + len(list(module.parameters()))
    for a, b in zip(ours, formula, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_bam_combines_as_published_or_as_in_the_paper() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 5, 7)
    for module, attention in ((BAM(32), torch.mul), (BAM(32, combine="sum"), torch.add)):
        module.eval()
        maps = module.channel_att(x), module.spatial_att(x)
        assert torch.allclose(module(x), x * (1 + torch.sigmoid(attention(*maps))), atol=1e-6)
    with pytest.raises(ValueError, match="product"):
        create_model("bam_resnet18", combine="max")


def test_sge_against_its_definition() -> None:
    torch.manual_seed(0)
    module = SpatialGroupEnhance(4).double()
    nn.init.normal_(module.weight)
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    out = module(x)
    for b in range(2):
        for g in range(4):
            group = x[b, 3 * g : 3 * g + 3]
            similarity = (group * group.mean((1, 2))[:, None, None]).sum(0)
            spread = similarity.flatten().std()
            t = (similarity - similarity.mean()) / (spread + 1e-5) * module.weight[0, g] + module.bias[0, g]
            assert torch.allclose(out[b, 3 * g : 3 * g + 3], group * torch.sigmoid(t))


@pytest.mark.parametrize("side", [1, 4])
def test_sge_of_a_map_without_spread(side: int) -> None:
    module = SpatialGroupEnhance(4)
    x = torch.ones(2, 8, side, side, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert torch.allclose(out, x * torch.sigmoid(torch.ones(())))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
