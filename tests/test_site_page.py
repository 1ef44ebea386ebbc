"""A site's own page: its cases one by one, and pictures as radiologists see them."""

import csv
import io
import math

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import torch

from fl_app.config import Job
from fl_app.data.site_data import load_site_data
from fl_app.errors import DataError
from fl_app.reports.page import write_report
from fl_app.reports.pictures import CaseVolumes, choose_cases, draw_planes, write_case_pictures
from fl_app.reports.site_page import write_site_report
from fl_app.reports.statistics import bootstrap_interval, box, pooled_estimate, student_interval
from fl_app.reports.tested_cases import write_tested_cases
from fl_app.result import SiteScores, write_result
from fl_app.training.metrics import CaseScore
from fl_app.training.reporting import write_case_scores
from fl_app.training.trainer import Trainer
from tests.federation import SMALL_JOB
from tests.results import a_finished_result
from tests.volumes import write_case


def scores(*values):
    return [CaseScore(f"case_{place}", {"spleen": value}, {"spleen": value}) for place, value in enumerate(values)]


def test_the_t_interval_is_scipys():
    values = [0.7, 0.8, 0.85, 0.9]
    ours = student_interval(float(np.mean(values)), float(np.std(values)), 4)
    theirs = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(theirs)


def test_the_spread_over_all_cases_is_that_of_the_cases():
    groups = [np.array([0.7, 0.9]), np.array([0.2, 0.3, 0.6])]
    sites = [SiteScores(cases=len(each), dice=each.mean(), dice_std=each.std(), surface_dice=None) for each in groups]
    pooled, everything = pooled_estimate(sites), np.concatenate(groups)
    assert (pooled.mean, pooled.std, pooled.cases) == pytest.approx((everything.mean(), everything.std(), 5))
    assert pooled_estimate([SiteScores(cases=0, dice=None, dice_std=None, surface_dice=None)]) is None


def test_the_bootstrap_agrees_with_scipys_and_is_the_same_each_time():
    values = np.random.default_rng(1).uniform(0.6, 0.95, 30)
    ours = bootstrap_interval(values)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(3))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)
    assert ours == bootstrap_interval(values)
    assert not bootstrap_interval([0.5]).has_interval


def test_the_whiskers_of_a_box_leave_outliers_out():
    drawn = box([0.1, 0.8, 0.82, 0.84, 0.86, 0.9])
    assert (drawn.low, drawn.high, drawn.median) == pytest.approx((0.8, 0.9, 0.83))


def test_a_sites_page_shows_every_case_and_the_leads_page_none(tmp_path):
    site = tmp_path / "run" / "sites" / "site-1"
    write_case_scores(site / "test_cases.csv", scores(0.912, 0.713, math.nan))
    write_result(tmp_path / "run" / "result.json", a_finished_result())
    lead = write_report(tmp_path / "run").read_text()
    own = (site / "report.html").read_text()
    assert "case_0" in own and "0.912" in own and "0.713" in own and "stays at the site" in own
    assert "case_0" not in lead and "0.713" not in lead
    assert 'href="sites/site-1/report.html"' in lead and "sites/site-2" not in lead


@pytest.mark.parametrize("place", ["hospital-a", "hospital-a/output", "hospital-a/output/a-job"])
def test_a_page_has_the_sites_or_the_kits_name(tmp_path, place):
    write_case_scores(tmp_path / place / "test_cases.csv", scores(0.9))
    assert "<h1>hospital-a</h1>" in write_site_report(tmp_path / place).read_text()


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such table"):
        write_site_report(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["case,organ\na,b\n", "case,organ,dice,surface_dice\na,b,much,0\n", "case,organ,dice,surface_dice\na,b,7,0\n"],
)
def test_a_damaged_table_is_refused(tmp_path, text):
    (tmp_path / "test_cases.csv").write_text(text)
    with pytest.raises(DataError, match="not a site's table of test scores"):
        write_site_report(tmp_path)


def test_best_median_and_worst_are_chosen_by_mean_dice():
    assert choose_cases(scores(0.5, math.nan, 0.9, 0.1, 0.7, 0.6)) == {"best": 2, "median": 5, "worst": 3}
    assert choose_cases(scores(0.5, 0.9)) == {"best": 1, "worst": 0}
    assert choose_cases(scores(0.5)) == {"best": 0}
    assert choose_cases(scores(math.nan)) == {}


SHAPE, SPACING = (40, 30, 16), (2.0, 2.0, 5.0)
NOTHING = np.zeros(SHAPE, np.uint8)
# where each direction is in a picture: columns left and right, rows top and bottom
HALVES = {
    "left": np.s_[:, :200], "right": np.s_[:, 220:], "top": np.s_[:200, :], "bottom": np.s_[220:, :],
}  # fmt: skip
# in RAS the first index grows to the patient's right, the second to anterior, the third to the head
WHERE = {
    "right": (np.s_[25:, :, :], {"axial": "left", "coronal": "left"}),
    "left": (np.s_[:15, :, :], {"axial": "right", "coronal": "right"}),
    "anterior": (np.s_[:, 19:, :], {"axial": "top", "sagittal": "left"}),
    "posterior": (np.s_[:, :11, :], {"axial": "bottom", "sagittal": "right"}),
    "head": (np.s_[:, :, 10:], {"coronal": "top", "sagittal": "top"}),
    "feet": (np.s_[:, :, :6], {"coronal": "bottom", "sagittal": "bottom"}),
}


def grey(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3].mean(axis=-1)


@pytest.mark.parametrize("direction", WHERE)
def test_each_direction_of_the_patient_is_where_a_radiologist_looks_for_it(direction):
    image = np.zeros(SHAPE, np.float32)
    place, seen = WHERE[direction]
    image[place] = 1
    pictures = {name: grey(png) for name, png in draw_planes(CaseVolumes(image, NOTHING, NOTHING, SPACING)).items()}
    for plane, half in seen.items():
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[half]
        assert pictures[plane][HALVES[half]].mean() > 3 * pictures[plane][HALVES[opposite]].mean()


def extent(mask):
    rows, columns = np.nonzero(mask)
    return np.ptp(columns) + 1, np.ptp(rows) + 1


def test_a_millimetre_is_as_long_in_every_direction():
    """A ball in space is a disc in each plane, although its voxels are not cubes."""
    places = np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(SHAPE, SPACING, strict=True)], indexing="ij")
    ball = (sum((p - c) ** 2 for p, c in zip(places, (40, 30, 40), strict=True)) < 22**2).astype(np.uint8)
    pictures = draw_planes(CaseVolumes(np.zeros(SHAPE), ball, NOTHING, SPACING))
    widths = []
    for name, png in pictures.items():
        colours = matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]
        turquoise = (colours[..., 2] > 0.6) & (colours[..., 0] < 0.4)
        across, up = extent(turquoise)
        widths.append(across)
        assert across == pytest.approx(up, rel=0.12), f"{name}: a step of 5 mm more or less"
    assert max(widths) < 1.12 * min(widths), "the same scale in all planes"


def test_truth_and_prediction_are_two_contours():
    truth, predicted = NOTHING.copy(), NOTHING.copy()
    truth[10:20, 10:20, 4:10] = 1
    predicted[14:26, 10:20, 4:10] = 1
    colours = matplotlib.image.imread(
        io.BytesIO(draw_planes(CaseVolumes(np.zeros(SHAPE), truth, predicted, SPACING))["axial"]), format="png"
    )
    orange = (colours[..., 0] > 0.6) & (colours[..., 2] < 0.4)
    turquoise = (colours[..., 2] > 0.6) & (colours[..., 0] < 0.4)
    assert orange.any() and turquoise.any()
    # the prediction lies more to the patient's right, which is the viewer's left
    assert np.nonzero(orange)[1].min() < np.nonzero(turquoise)[1].min()


def test_only_the_chosen_cases_are_asked_for(tmp_path):
    asked = []

    def volumes(place):
        asked.append(place)
        return CaseVolumes(np.zeros(SHAPE), NOTHING, NOTHING, SPACING)

    drawn = write_case_pictures(tmp_path, scores(0.1, 0.2, 0.3, 0.4, 0.5), volumes)
    assert asked == [4, 2, 0] and [picture.rank for picture in drawn] == ["best", "median", "worst"]


def test_a_tested_site_has_table_pictures_and_page(tmp_path):
    job = Job.model_validate(SMALL_JOB)
    for seed in range(7):
        write_case(tmp_path / "data", f"case_{seed}", seed)
    data = load_site_data(tmp_path / "data", job.data, job.seed, cache=None)
    trainer = Trainer(job, [], torch.device("cpu"), "site-1")
    tested = trainer.score(data.test, native=True)
    write_tested_cases(tmp_path / "site-1", trainer, data.test, tested)
    with (tmp_path / "site-1" / "test_cases.csv").open() as stream:
        assert [line["case"] for line in csv.DictReader(stream)] == [case.name for case in data.test]
    page = (tmp_path / "site-1" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3 * min(3, len(data.test))
    (tmp_path / "site-1" / "pictures" / "best-axial.png").unlink()
    with pytest.raises(DataError, match="a picture is missing"):
        write_site_report(tmp_path / "site-1")
