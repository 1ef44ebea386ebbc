"""Small CT-like volumes for tests: air, a body, and one organ on the patient's left."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np

from fl_app.data.cases import find_cases
from fl_app.data.checks import check_cases, format_findings

SHAPE = (24, 20, 12)
SPACING_MM = (4.0, 4.0, 5.0)
# RAS: the first axis runs to the patient's right, so low indices are the left
AFFINE = np.array([[4.0, 0, 0, -46], [0, 4.0, 0, -38], [0, 0, 5.0, 100], [0, 0, 0, 1]])
MIRROR = np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

SPLEEN = {"spleen": 1}
IMAGE = "imagesTr/case_1.nii.gz"  # the case that tests damage
LABEL = "labelsTr/case_1.nii.gz"


def make_ct(seed=0, organ=1):
    """Return (image int16 HU, label uint8): an elliptic body in air, the organ (label value `organ`) on its left."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.7) ** 2 < 1
    spleen = ((x + 0.5) / 0.2) ** 2 + ((y + 0.1) / 0.25) ** 2 + (z / 0.5) ** 2 < 1
    image = np.full(SHAPE, -1000.0)
    image[body] = 30
    image[spleen] = 60
    image += random.normal(0, 8, SHAPE)
    return image.astype(np.int16), spleen.astype(np.uint8) * organ


def write_nifti(path, voxels, affine=AFFINE, kind=nibabel.Nifti1Image):
    """Write voxels and affine (sform and qform) as NIfTI and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(voxels, affine), path)
    return path


def write_case(folder, name, seed=0, ending=".nii.gz"):
    """Write one clean case in the Decathlon's layout; return (image path, label path)."""
    image, label = make_ct(seed)
    folder = Path(folder)
    return (
        write_nifti(folder / "imagesTr" / f"{name}{ending}", image),
        write_nifti(folder / "labelsTr" / f"{name}{ending}", label),
    )


def write_decathlon(folder, cases=3, listed=True):
    """Write clean cases case_0, case_1, ... in the Decathlon's layout; return the folder."""
    folder = Path(folder)
    names = [f"case_{number}" for number in range(cases)]
    for seed, name in enumerate(names):
        write_case(folder, name, seed)
    if listed:
        entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
        (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "training": entries, "test": []}))
    return folder


def check(folder, labels=SPLEEN):
    """Check a folder; every finding must name a remedy, and the text must name everything."""
    findings = check_cases(find_cases(folder), labels)
    text = format_findings(findings)
    for finding in findings:
        assert finding.remedy and finding.problem
        assert finding.code in text
        assert str(folder) not in finding.problem + finding.remedy + finding.file
    return findings


def kinds(findings):
    return [(finding.severity, finding.code, finding.file) for finding in findings]


def only(findings, severity, code, file):
    """The one finding there is."""
    assert kinds(findings) == [(severity, code, file)]
    return findings[0]


def change(site, file, voxels=None, affine=None, kind=nibabel.Nifti1Image):
    """Rewrite a file of the site with other voxels or another affine."""
    old = nibabel.load(site / file)
    voxels = np.asanyarray(old.dataobj) if voxels is None else voxels
    write_nifti(site / file, voxels, old.affine if affine is None else affine, kind)


def set_header(path, **fields):
    """Write fields of a .nii.gz file's header as they are, valid or not."""
    content = gzip.decompress(path.read_bytes())
    header = nibabel.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(gzip.compress(header.binaryblock + content[348:]))


def both(site, number, affine=None, reverse=False):
    """Rewrite image and label of a case: another affine, arrays reversed along left-right."""
    for part in ("imagesTr", "labelsTr"):
        path = site / part / f"case_{number}.nii.gz"
        old = nibabel.load(path)
        voxels = np.asanyarray(old.dataobj)
        write_nifti(path, voxels[::-1] if reverse else voxels, old.affine if affine is None else affine)


def touch(folder, *files):
    """Create empty files: finding cases does not read them."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def describe(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
