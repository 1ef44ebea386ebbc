"""FLARE's FedAvg recipe around MONAI's spleen tutorial, in FLARE's simulator.

    python benchmarks/peers/monai_tutorial.py WORKSPACE ROUNDS PLAN

PLAN is a JSON file: ``network`` (arguments of MONAI's U-Net), ``sites`` (for each site's name its training and
validation files), ``spacing_mm``, ``patch``, ``amp``, ``scores`` (file to which the sites append their Dice).
The recipe keeps its default settings; the client is `monai_tutorial_client.py`.
"""

import json
import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from fl_app.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    workspace, rounds, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
    plan = json.loads(path.read_text())
    recipe = FedAvgRecipe(
        name="peer",
        min_clients=len(plan["sites"]),
        num_rounds=rounds,
        model={"path": "monai.networks.nets.UNet", "args": plan["network"]},
        train_script=str(Path(__file__).with_name("monai_tutorial_client.py")),
        train_args=str(path),
    )
    recipe.execute(SimEnv(num_clients=len(plan["sites"]), workspace_root=workspace))
