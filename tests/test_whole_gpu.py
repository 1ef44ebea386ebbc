"""The instance normalisation for GPUs, against torch's in double precision; it is the same on a CPU."""

import pytest
import torch
from torch.nn import functional

from fl_app.training.whole_gpu import is_quick_for, normalised


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_results_and_gradients_are_torchs(layout, affine):
    torch.manual_seed(0)
    features = (torch.randn(2, 3, 5, 6, 7, dtype=torch.double) + 3).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.double).requires_grad_() if affine else None for _ in range(2))
    upstream = torch.randn(2, 3, 5, 6, 7, dtype=torch.double)  # of the other layout, in half of the cases
    wanted = functional.instance_norm(features, weight=weight, bias=bias, eps=1e-3)
    found = normalised(features, weight, bias, 1e-3)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous(memory_format=layout)
    sources = [each for each in (features, weight, bias) if each is not None]
    for one, other in zip(*(torch.autograd.grad(each, sources, upstream) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_statistics_are_in_fp32_and_the_type_is_kept(kind):
    torch.manual_seed(0)
    features = (20 + torch.randn(1, 2, 40, 40, 40)).to(kind)
    found = normalised(features, torch.ones(2), torch.zeros(2), 1e-5)
    assert found.dtype == kind
    exact = functional.instance_norm(features.double())
    assert float((found - exact).abs().max()) < 4 * 2.0**-7 and float(found.float().mean().abs()) < 1e-3


def test_it_is_for_large_maps_of_few_channels_on_a_gpu():
    assert not is_quick_for(torch.zeros(1, 2, 96, 96, 96, dtype=torch.bfloat16))
