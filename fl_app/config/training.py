"""How a site trains, predicts and scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fl_app.config.base import Fraction, Positive, Probability, Settings, Triple

PatchShare = Annotated[float, Field(ge=0.25, le=1)]


class AugmentationSettings(Settings):
    """Random changes to each training patch; 0 switches one off."""

    flip_probability: tuple[Probability, Probability, Probability] = Field(
        (0.0, 0.0, 0.0), description="chance of mirroring along x, y, z; x makes left and right alike"
    )
    intensity_scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="intensities are multiplied by 1 - s to 1 + s"
    )
    intensity_shift: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="intensities are shifted by -s to s, in units of the HU window"
    )
    noise: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="standard deviation of added Gaussian noise, in units of the HU window"
    )


class TrainingSettings(Settings):
    """How each site trains, between two exchanges."""

    loss: Literal["dice_ce", "dice", "dice_focal"] = Field(
        "dice_ce", description="dice_ce: soft Dice plus cross-entropy; dice; dice_focal: Dice plus focal loss"
    )
    optimizer: Literal["novograd", "adam", "adamw", "sgd"] = Field(
        "novograd", description="sgd uses Nesterov momentum 0.99, as nnU-Net does"
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(0.002, description="at the start of the job")
    schedule: Literal["constant", "cosine", "polynomial"] = Field(
        "cosine",
        description="how the learning rate falls over the whole job; polynomial: power 0.9 as nnU-Net",
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="L2 penalty or decoupled decay")
    steps_per_round: Annotated[int, Field(ge=0)] = Field(
        100,
        description="optimiser steps of each site in a round; 0: none, which measures the federation alone",
    )
    batch_size: Positive = Field(2, description="patches in a step")
    patch_share: PatchShare = Field(
        1.0, description="sides of a training patch as a share of data.patch_voxels, down to what the network divides"
    )
    least_patch_share: PatchShare = Field(
        0.75, description="a site whose memory budget holds no training step goes down to this patch_share by itself"
    )
    recompute: bool = Field(
        False,
        description="activations are not kept for the backward pass, but computed again: the same gradients in less "
        "memory and more time. A site does so by itself where its memory budget holds no training step otherwise. Not "
        "with batch normalisation",
    )
    early_update: bool = Field(
        False,
        description="each weight is updated as soon as its gradient is known, so that no gradients are kept; "
        "gradient_clip is then the largest norm of each weight's gradient. A site does so by itself where its memory "
        "budget holds no training step otherwise. Without effect in fp16 and where several processes take the steps",
    )
    frozen_share: Fraction = Field(
        0.0,
        description="part of the weights that is not trained, the largest tensors of the network first, which saves "
        "their gradients and optimiser states",
    )
    most_frozen_share: Fraction = Field(
        0.9,
        description="a site whose memory budget holds no training step otherwise goes up to this frozen_share by "
        "itself; what it does not train, others do: each value is averaged over the sites that have trained it",
    )
    accumulate: Positive = Field(
        1,
        description="batches that an optimiser step takes one after the other, adding up their gradients: large "
        "batches in the memory of small ones",
    )
    foreground_share: Probability = Field(0.5, description="share of patches centred on an organ; the rest in the body")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="auto: what is fastest at a site in a short trial (which tries memory layouts for any precision); "
        "if deterministic, searching, below 2000 steps or with a memory budget: bf16 where the device computes it "
        "fast, else fp16 on GPU and fp32 on CPU; fp16 scales gradients and needs a GPU; fp32: mixed precision off",
    )
    gradient_clip: Annotated[float, Field(ge=0)] = Field(12.0, description="largest norm of the gradient; 0: no limit")
    deterministic: bool = Field(
        False, description="same seed, same machine: the same weights, bit for bit; may be slower on a GPU"
    )
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings)


class EvaluationSettings(Settings):
    """How predictions are made and scored."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25,
        description="share by which neighbouring windows, spread evenly, overlap at least; their predictions blend "
        "with Gaussian weights",
    )
    windows_at_once: Positive = Field(
        4,
        description="windows that a GPU predicts at one time; a CPU takes one. A site whose memory budget holds no "
        "more takes one by itself",
    )
    window_voxels: Triple | None = Field(
        None,
        description="sides of a window; none: data.patch_voxels, which it must not be larger than. A site whose memory "
        "budget holds no such window takes smaller ones by itself",
    )
    surface_tolerance_mm: Annotated[float, Field(gt=0)] = Field(
        3.0, description="normalised surface distance: a surface point within this many mm counts as right"
    )
