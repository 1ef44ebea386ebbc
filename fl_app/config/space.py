"""The space that an architecture search looks through."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fl_app.config.base import Positive, Settings, mistake

Operation = Literal[
    "skip",
    "conv_3x3x3",
    "conv_3x3x1",
    "conv_3x1x3",
    "conv_1x3x3",
    "pseudo_3x3x1",
    "pseudo_3x1x3",
    "pseudo_1x3x3",
]
DINTS_OPERATIONS: tuple[Operation, ...] = ("skip", "conv_3x3x3", "pseudo_3x3x1", "pseudo_3x1x3", "pseudo_1x3x3")


class SearchSpace(Settings):
    """A grid of ``blocks`` columns and ``depths`` resolutions, with a cell on each edge (DiNTS, He et al., CVPR 2021).

    From each resolution, edges lead to the same, the next finer and the next coarser one in the next column:
    3 * depths - 2 edges in a block.
    """

    topology: Literal["free", "unet"] = Field(
        "free",
        description="free: edges and operations are searched, as DiNTS does; unet: the edges of a U-Net, only their "
        "operations are searched, as V-NAS does",
    )
    blocks: Annotated[int, Field(ge=1, le=16)] = Field(6, description="columns of cells")
    depths: Annotated[int, Field(ge=2, le=5)] = Field(4, description="resolutions, each half of the one above it")
    channels: Positive = Field(8, description="feature maps at the finest resolution; doubled at each coarser one")
    operations: tuple[Operation, ...] = Field(
        DINTS_OPERATIONS,
        description="what a cell may compute; conv_*: one convolution, in 3D or in one plane; pseudo_*: one in a "
        "plane, then one across it",
    )
    downsampling_stem: bool = Field(
        True, description="true: the finest resolution is half of the patch's; false: the patch's own, for small organs"
    )

    @model_validator(mode="after")
    def _can_hold_a_network(self) -> SearchSpace:
        if len(set(self.operations)) != len(self.operations) or not set(self.operations) - {"skip"}:
            raise mistake("different operations, at least one of them a convolution")
        if self.topology == "unet" and self.blocks < 2 * (self.depths - 1):
            raise mistake(
                f"topology unet with {self.depths} depths needs {2 * (self.depths - 1)} blocks or more, "
                "to go down and up again"
            )
        return self

    @property
    def name(self) -> str:
        """Names all that fixes the shapes of the weights, such as ``free-6x4-c8-half``."""
        stem = "half" if self.downsampling_stem else "full"
        return f"{self.topology}-{self.blocks}x{self.depths}-c{self.channels}-{stem}"

    @property
    def patch_multiple(self) -> int:
        """What each side of a patch must be a multiple of, in voxels."""
        return int(2 ** (self.depths - 1 + self.downsampling_stem))
