"""Compare the cases of a site with each other: absent labels, duplicates, flipped sides."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl_app.data.findings import Finding, error, warning

_CLEARLY_LATERAL = 0.1  # of half the body's width
_MAJORITY = 0.75  # of a case's siblings
_FEWEST_SIBLINGS = 2


@dataclass
class CaseFacts:
    """What is kept of a case after its voxels are gone.

    Attributes:
        file: the image.
        label_file: the label map; empty without one.
        content: a hash of the image's voxels; empty where it could not be read.
        label_content: the same of the label map.
        present: the names of the declared labels that it holds.
        left_right: "L" or "R", where one of the array axes points; empty where unknown.
        sides: for each label present, where its centroid lies: -1 is the left skin, 1 the right.
    """

    file: str
    label_file: str = ""
    content: str = ""
    label_content: str = ""
    present: set[str] = field(default_factory=set)
    left_right: str = ""
    sides: dict[str, float] = field(default_factory=dict)


def check_siblings(cases: Sequence[CaseFacts], labels: Mapping[str, int]) -> list[Finding]:
    """Return what only shows when the cases of a site are seen together.

    Args:
        cases: the facts of every case.
        labels: the declared labels, name to value.
    """
    return [*_check_presence(cases, labels), *_check_duplicates(cases), *_check_sides(cases)]


def _check_presence(cases: Sequence[CaseFacts], labels: Mapping[str, int]) -> list[Finding]:
    findings: list[Finding] = []
    readable = [case for case in cases if case.label_content]
    for name, value in labels.items():
        without = [case for case in readable if name not in case.present]
        if without and len(without) == len(readable):
            findings.append(
                error(
                    "label-absent-everywhere",
                    ".",
                    f"No label map of this site holds {name} (value {value}).",
                    f"Give {name} the value that the label maps use, under `data.labels` in the job file.",
                )
            )
            continue
        findings += [
            warning(
                "label-absent",
                case.label_file,
                f"It does not hold {name} (value {value}).",
                f"Check in a viewer that the image does not show {name} either.",
            )
            for case in without
        ]
    return findings


def _check_duplicates(cases: Sequence[CaseFacts]) -> list[Finding]:
    findings: list[Finding] = []
    first: dict[str, CaseFacts] = {}
    for case in cases:
        twin = first.setdefault(case.content, case) if case.content else case
        if twin is not case:
            differ = ", but their labels differ" if twin.label_content != case.label_content else ""
            findings.append(
                error(
                    "duplicate-image",
                    case.file,
                    f"It has the same voxels as {twin.file}{differ}.",
                    "Keep one of the two: a copy in training and test makes the test worthless.",
                )
            )
    return findings


def _check_sides(cases: Sequence[CaseFacts]) -> list[Finding]:
    """Return the cases whose organs lie on the other side of the body than in their siblings.

    Two facts decide. Organs on the other side and an array axis that points the other way: the affine's
    sign is wrong, an error. Organs on the other side alone: a mirrored array or situs inversus, a warning.
    The other array direction alone is only another way to store the same patient. Labels that are not
    clearly on one side in at least three quarters of the siblings (bilateral or central organs) say nothing.
    """
    findings: list[Finding] = []
    for case in cases:
        siblings = [other for other in cases if other is not case]
        sides = {name: side for name in case.sides if (side := _usual_side(name, siblings))}
        opposite = sorted(name for name, side in sides.items() if case.sides[name] * side < -_CLEARLY_LATERAL)
        if not opposite or 2 * len(opposite) <= len(sides):
            continue
        lies = [f"{name} on the patient's {'right' if case.sides[name] > 0 else 'left'}" for name in opposite[:3]]
        problem = f"It shows {', '.join(lies)}, the other cases on the other side"
        usual = Counter(other.left_right for other in siblings if other.left_right).most_common(1)
        if case.left_right and usual and usual[0][0] != case.left_right:
            findings.append(
                error(
                    "left-right-flipped",
                    case.file,
                    f"{problem}; and its affine points left-right the other way than theirs.",
                    "Convert the case again from DICOM; the sign of the affine's left-right axis is wrong.",
                )
            )
        else:
            findings.append(
                warning(
                    "organ-on-other-side",
                    case.file,
                    f"{problem}.",
                    "Look at it in a viewer: if the array is mirrored, convert the case again; "
                    "in situs inversus all is well.",
                )
            )
    return findings


def _usual_side(name: str, siblings: Sequence[CaseFacts]) -> int:
    """Return the side of a label in the siblings: -1 left, 1 right, 0 where there is no clear majority."""
    known = [case.sides[name] for case in siblings if name in case.sides]
    left = sum(side < -_CLEARLY_LATERAL for side in known)
    right = sum(side > _CLEARLY_LATERAL for side in known)
    if len(known) < _FEWEST_SIBLINGS or max(left, right) < _MAJORITY * len(known):
        return 0
    return 1 if right > left else -1
