"""What a site's engineer finds of a test: the table of its cases, pictures of some, and a page with both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

from fl_app.data.preparation import PreparedCase, load_label
from fl_app.reports.pictures import PICTURES, CaseVolumes, write_case_pictures
from fl_app.reports.site_page import SCORES, write_site_report
from fl_app.training.evaluation import predict, to_native_grid
from fl_app.training.metrics import CaseScore
from fl_app.training.reporting import write_case_scores
from fl_app.training.trainer import Trainer


def write_tested_cases(
    folder: Path, trainer: Trainer, cases: Sequence[PreparedCase], scores: Sequence[CaseScore]
) -> None:
    """Leave table, pictures and page in the site's own folder.

    Args:
        folder: the site's output folder.
        trainer: holds the model that was tested; at most three cases are predicted again.
        cases: the test cases.
        scores: of these cases, in the same order.
    """
    write_case_scores(folder / SCORES, scores)
    write_case_pictures(folder / PICTURES, scores, lambda place: case_volumes(trainer, cases[place]))
    write_site_report(folder)


def case_volumes(trainer: Trainer, case: PreparedCase) -> CaseVolumes:
    """A case as it was scored: image (HU), truth and prediction on the grid that the annotator drew on, in RAS."""
    assert case.source.label is not None  # a case without a label does not pass the data check
    truth = load_label(case.source.label, trainer.job.data)
    probabilities = predict(trainer.network, case.image, trainer.job, trainer.precision).cpu()
    predicted = to_native_grid(probabilities, case.affine, truth)
    load = Compose([LoadImage(reader="NibabelReader"), EnsureChannelFirst(), Orientation("RAS", labels=None)])
    across, up, through = (float(size) for size in truth.pixdim)
    return CaseVolumes(
        image=load(str(case.source.image))[0].numpy(),
        truth=truth.as_tensor()[0].numpy(),
        predicted=predicted.numpy(),
        spacing_mm=(across, up, through),
        window=trainer.job.data.window_hu,
    )
