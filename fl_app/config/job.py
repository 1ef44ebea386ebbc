"""One federated training, whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from fl_app.config.base import Settings, mistake
from fl_app.config.data import DataSettings
from fl_app.config.federation import FederationSettings
from fl_app.config.network import NetworkSettings
from fl_app.config.personal import PersonalSettings
from fl_app.config.search import SearchSettings
from fl_app.config.training import EvaluationSettings, TrainingSettings


class Job(Settings):
    """One federated training, whole."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")] = Field(
        "spleen", description="lower-case letters, digits, '-' and '_', at most 40"
    )
    seed: Annotated[int, Field(ge=0, le=2**31)] = Field(0, description="of everything random")
    data: DataSettings = Field(default_factory=DataSettings)
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    federation: FederationSettings = Field(default_factory=FederationSettings)
    personal: PersonalSettings = Field(default_factory=PersonalSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Job:
        problem = self.network.patch_problem(self.data.patch_voxels, self.data.spacing_mm)
        if problem:
            raise mistake(problem)
        multiple = self.search.space.patch_multiple
        if self.search.of_cells and any(size % multiple for size in self.data.patch_voxels):
            nearest = [max(multiple, round(size / multiple) * multiple) for size in self.data.patch_voxels]
            raise mistake(f"multiples of {multiple} for search.space (nearest: {nearest})")
        if self.search.strategy == "width":
            if self.network.name != "unet":
                raise mistake("network.name unet for search.strategy width: the others come in one width here")
            if list(self.network.channels or ()) != sorted(self.network.channels or ()):
                raise mistake("network.channels that do not shrink from level to level for search.strategy width")
        if not self.federation.rounds and not self.search.wanted:
            raise mistake("federation.rounds of 1 or more, or a search.strategy: nothing would be trained")
        if self.training.patch_share < 1 and not self.trains_on(self.training_patch):
            raise mistake(f"training.patch_share nearer to 1 than gives patches of {list(self.training_patch)} voxels")
        if not self.predicts(self.window):
            raise mistake(
                f"evaluation.window_voxels of at most {list(self.data.patch_voxels)}, which is data.patch_voxels, in "
                f"multiples of {list(self._steps)}; UNETR predicts in windows of data.patch_voxels only"
            )
        if self.training.recompute and self.network.normalisation == "batch":
            raise mistake("training.recompute: false with batch normalisation, which would count each batch twice")
        return self

    @property
    def training_patch(self) -> tuple[int, int, int]:
        """Voxels of a training patch: ``training.patch_share`` of ``data.patch_voxels``, in the network's multiples."""
        x, y, z = (
            max(step, int(side * self.training.patch_share / step) * step)
            for side, step in zip(self.data.patch_voxels, self._steps, strict=True)
        )
        return x, y, z

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels of a window in prediction."""
        return self.evaluation.window_voxels or self.data.patch_voxels

    @property
    def pulls(self) -> bool:
        """Whether some training holds other weights, to which it pulls its own (FedProx, Ditto)."""
        return self.federation.algorithm == "fedprox" or bool(self.personal.ditto)

    def trains_on(self, patch: Sequence[int]) -> bool:
        """Whether the networks of the job can be trained on patches smaller than ``data.patch_voxels``."""
        if self.network.name == "unetr":  # it has learned a place for each voxel
            return False
        if self.search.of_cells and any(size % self.search.space.patch_multiple for size in patch):
            return False
        # dynunet is planned from data.patch_voxels, whose multiples these are
        return self.network.name == "dynunet" or not self.network.patch_problem(patch, self.data.spacing_mm)

    def predicts(self, window: Sequence[int]) -> bool:
        """Whether the networks of the job can predict in windows no larger than ``data.patch_voxels``."""
        if tuple(window) == self.data.patch_voxels:
            return True
        sides = zip(window, self.data.patch_voxels, self._steps, strict=True)
        return all(side <= most and side % step == 0 for side, most, step in sides) and self.trains_on(window)

    def smaller_windows(self) -> Iterator[tuple[int, int, int]]:
        """The job's windows and all smaller ones that it can predict in; the side of most mm is shortened first."""
        window = list(self.window)
        while True:
            x, y, z = window
            if self.predicts(window):
                yield x, y, z
            longest = [
                (side * mm, axis)
                for axis, (side, mm, step) in enumerate(zip(window, self.data.spacing_mm, self._steps, strict=True))
                if side > step
            ]
            if not longest:
                return
            axis = max(longest)[1]
            window[axis] -= self._steps[axis]

    @property
    def _steps(self) -> tuple[int, ...]:
        return self.network.patch_multiples(self.data.patch_voxels, self.data.spacing_mm)
