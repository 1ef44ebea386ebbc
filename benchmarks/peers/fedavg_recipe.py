"""FLARE's FedAvg recipe as its documentation shows it, default settings, in the simulator: WORKSPACE ROUNDS SITES."""

import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from fl_app.config import NetworkSettings

if __name__ == "__main__":
    workspace, rounds, sites = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = NetworkSettings()
    assert settings.channels is not None
    recipe = FedAvgRecipe(
        name="peer",
        min_clients=sites,
        num_rounds=rounds,
        model={
            "path": "monai.networks.nets.UNet",
            "args": {
                "spatial_dims": 3,
                "in_channels": 1,
                "out_channels": 2,
                "channels": list(settings.channels),
                "strides": [2] * (len(settings.channels) - 1),
                "num_res_units": settings.residual_units,
            },
        },
        train_script=str(Path(__file__).with_name("fedavg_recipe_client.py")),
    )
    recipe.execute(SimEnv(num_clients=sites, workspace_root=workspace))
