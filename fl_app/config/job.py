"""One federated training, whole."""

from __future__ import annotations

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
        return self
