"""`fedspleen phantom`: made-up CT to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def phantom(
    folder: Annotated[Path, typer.Argument(help="A new folder; gets a sub-folder for each site.", show_default=False)],
    sites: Annotated[int, typer.Option(min=1, max=100, help="How many sites.")] = 3,
    cases: Annotated[int | None, typer.Option(min=1, help="Cases a site.", show_default="16, 12, 9, ...")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other patients.")] = 0,
    detail: Annotated[float, typer.Option(help="1: about 120 x 100 x 45 voxels; 4.2: as fine as real CT.")] = 1.0,
) -> None:
    """Make the phantom cohort that `simulate` trains on: abdominal CT and spleen labels, in Decathlon layout."""
    from fl_app.data.phantom import make_cohort

    made = make_cohort(folder, sites=sites, seed=seed, cases=[cases] * sites if cases else None, detail=detail)
    for path in made:
        print(path)
