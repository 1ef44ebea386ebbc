"""The loss that keeps little is MONAI's, in value and gradient."""

import pytest
import torch
from monai.losses.dice import DiceCELoss
from torch.autograd import gradcheck

from fl_app.training import dice_ce
from fl_app.training.dice_ce import DiceCrossEntropy

MONAI = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
SHAPE = (5, 4, 3)


def patches(organs, batch=2, share=0.3, kind=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(batch, 1 + organs, *SHAPE, generator=generator)).to(kind)
    labels = torch.randint(1, organs + 1, (batch, 1, *SHAPE), generator=generator)
    labels *= torch.rand(batch, 1, *SHAPE, generator=generator) < share
    return logits.requires_grad_(), labels


def gradient_of(loss, logits, labels, scale=1.0):
    value = loss(logits, labels)
    (scale * value).backward()
    gradient, logits.grad = logits.grad, None
    return value.detach(), gradient


@pytest.mark.parametrize("organs", [1, 2, 5])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("labels_as", [torch.int64, torch.uint8, torch.float32])
def test_value_and_gradient_are_monais(organs, share, labels_as):
    logits, labels = patches(organs, share=share)
    value, gradient = gradient_of(DiceCrossEntropy(), logits, labels.to(labels_as))
    expected_value, expected = gradient_of(MONAI, logits, labels.float())
    assert torch.allclose(value, expected_value, atol=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-7, rtol=1e-4)


def test_chunks_do_not_change_the_result(monkeypatch):
    logits, labels = patches(2)
    whole = gradient_of(DiceCrossEntropy(), logits, labels)
    monkeypatch.setattr(dice_ce, "_CHUNK_VALUES", {"cpu": 1})
    chunked = gradient_of(DiceCrossEntropy(), logits, labels)
    assert torch.allclose(whole[0], chunked[0], atol=1e-6) and torch.allclose(whole[1], chunked[1], atol=1e-8)


def test_the_gradient_is_the_numerical_one():
    logits, labels = patches(2, kind=torch.float64)
    assert gradcheck(lambda values: DiceCrossEntropy()(values, labels), [logits])


def test_a_scaled_loss_has_a_scaled_gradient():
    logits, labels = patches(1)
    _, once = gradient_of(DiceCrossEntropy(), logits, labels)
    _, scaled = gradient_of(DiceCrossEntropy(), logits, labels, scale=1024.0)
    assert torch.allclose(scaled, once * 1024, rtol=1e-6)


def test_half_precision_logits_get_a_half_precision_gradient():
    logits, labels = patches(1)
    short = logits.detach().to(torch.bfloat16).requires_grad_()
    value, gradient = gradient_of(DiceCrossEntropy(), short, labels)
    exact_value, exact = gradient_of(MONAI, short.detach().float().requires_grad_(), labels.float())
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(value, exact_value, atol=1e-6)
    assert torch.allclose(gradient.float(), exact, rtol=0.01, atol=1e-6)


def test_only_logits_and_labels_are_kept():
    kept = []
    logits, labels = patches(1)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        DiceCrossEntropy()(logits, labels)
    assert sum(each.numel() for each in kept) <= logits.numel() + labels.numel() + 6
