"""MODEL_CARD.md: what a model is, what it was trained on, how well it did, and what it is not for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fl_app.config import Job
from fl_app.errors import DataError
from fl_app.model_file import ModelInfo
from fl_app.result import Final, Result


def write_card(info: ModelInfo, result: Result | None, files: Mapping[str, str]) -> str:
    """The card's text; sites are called site-1, site-2, ... by their number of training cases.

    Args:
        info: what the model file says.
        result: of the run that trained it, or none.
        files: what lies beside the card, name and meaning.

    Raises:
        DataError: the result is of another job.
    """
    job = info.job
    if result is not None and result.config != job.model_dump(mode="json"):
        raise DataError("--result: it is the result of another job than this model's; name the result.json beside it")
    sections = [
        f"# {job.name}: {', '.join(job.data.labels)} in CT",
        f"A 3D segmentation network ({info.network}), trained by federated learning with fedspleen: "
        "the images stayed at the sites, weights travelled.",
        "## Intended use",
        "Research on CT like that of the sites it was trained at. No medical device; not for diagnosis or treatment.",
        "## Input and output",
        _input(job),
        "## Files",
        "\n".join(f"- `{name}`: {meaning}" for name, meaning in files.items()),
        "## Training data",
        _data(result),
        "## Results",
        _results(info, result),
        "## Limits",
        _limits(job, result),
        "## Provenance",
        _provenance(info),
    ]
    return "\n\n".join(sections) + "\n"


def metrics(info: ModelInfo, result: Result | None) -> dict[str, float]:
    """What is known of the model's quality, by name."""
    known = dict([info.metric]) if info.metric else {}
    if result and result.final and _is_tested(info, result.final):
        tested = {"test_mean_dice": result.final.mean_dice, "test_mean_surface_dice": result.final.mean_surface_dice}
        known |= {name: value for name, value in tested.items() if value is not None}
    return known


def pseudonyms(result: Result) -> dict[str, str]:
    """site-1, site-2, ... by the sites' names: those with many training cases first, then those that took no part."""
    took_part = sorted(result.sites, key=lambda name: (-result.sites[name].training_cases, name))
    others = sorted({*result.refused, *(result.final.left_out if result.final else ())} - set(took_part))
    return {name: f"site-{number}" for number, name in enumerate([*took_part, *others], start=1)}


def _input(job: Job) -> str:
    spacing = " x ".join(f"{size:g}" for size in job.data.spacing_mm)
    patch = " x ".join(map(str, job.data.patch_voxels))
    lower, upper = job.data.window_hu
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(["background", *job.data.labels]))
    values = ", ".join(f"{organ} {value}" for organ, value in job.data.labels.items())
    return "\n".join(
        [
            f"- Input: CT in Hounsfield units, orientation RAS, spacing {spacing} mm (linear), the window {lower:g} to "
            f"{upper:g} HU mapped to 0..1 and clipped; windows of {patch} voxels that overlap by "
            f"{job.evaluation.overlap:.0%}, blended with Gaussian weights.",
            f"- Output: logits, one channel a class: {classes}.",
            f"- Values in written label maps: {values}.",
        ]
    )


def _data(result: Result | None) -> str:
    if result is None:
        return "Not recorded here: the card was made without the run's result."
    names = pseudonyms(result)
    lines = ["| site | training | validation | test |", "| --- | ---: | ---: | ---: |"]
    for name, pseudonym in names.items():
        if name in result.sites:
            site = result.sites[name]
            lines.append(f"| {pseudonym} | {site.training_cases} | {site.validation_cases} | {site.test_cases} |")
    return "Cases by site; sites are named by pseudonyms.\n\n" + "\n".join(lines)


def _is_tested(info: ModelInfo, final: Final) -> bool:
    """Whether the run's test scores are this model's: its file tells the round, and why it was chosen."""
    chosen = info.metric is None or info.metric == (final.best_metric, final.best_value)
    return not info.architectures and info.round == final.round and chosen


def _results(info: ModelInfo, result: Result | None) -> str:
    lines = []
    if info.metric:
        lines.append(f"Chosen after round {info.round} by {info.metric[0]} {info.metric[1]:.3f} on validation cases.")
    if result is None or result.final is None:
        return "\n\n".join([*lines, "Scores on held-out test cases are not recorded here."])
    if not _is_tested(info, result.final):
        lines.append(
            f"The run's test scores are not repeated here: they are of its best federated model, after round "
            f"{result.final.round}, and this is a model of another round, a site's own, or one that was searched."
        )
        return "\n\n".join(lines)
    names = pseudonyms(result)
    lines.append("On held-out test cases, each on its annotator's own grid:")
    table = ["| site | cases | Dice | spread | surface Dice |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in sorted(result.final.sites, key=lambda name: int(names[name].removeprefix("site-"))):
        scores = result.final.sites[name]
        numbers = [_number(value) for value in (scores.dice, scores.dice_std, scores.surface_dice)]
        table.append(f"| {names[name]} | {scores.cases} | {' | '.join(numbers)} |")
    total = sum(scores.cases for scores in result.final.sites.values())
    means = (_number(result.final.mean_dice), "", _number(result.final.mean_surface_dice))
    table.append(f"| all | {total} | {' | '.join(means)} |")
    return "\n\n".join([*lines, "\n".join(table)])


def _limits(job: Job, result: Result | None) -> str:
    limits = [
        "Scanners, contrast phases, ages and diseases that training did not see may give wrong results without a sign.",
        "Every result needs to be looked at by someone who can judge it.",
        "Removing names is not anonymity: weights can carry traces of training images.",
    ]
    if job.data.reuse_cases:
        limits.append("Validation and test cases were training cases too: the scores say nothing of other patients.")
    if result is not None:
        names = pseudonyms(result)
        limits += [_pseudonymised(caveat, names) for caveat in result.caveats]
    return "\n".join(f"- {limit}" for limit in limits)


def _pseudonymised(text: str, names: Mapping[str, str]) -> str:
    if not names:
        return text
    longest_first = sorted(names, key=len, reverse=True)
    pattern = r"(?<![\w-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])"
    return re.sub(pattern, lambda found: names[found[0]], text)


def _provenance(info: ModelInfo) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(info.versions.items()))
    return f"Job `{info.job.name}`, seed {info.job.seed}, after round {info.round}; {versions or 'versions unknown'}."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
