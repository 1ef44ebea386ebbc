import gzip

import numpy as np
import pytest

from fl_app.data.cases import find_cases
from fl_app.data.checks import check_cases
from tests.volumes import IMAGE, LABEL, SHAPE, SPLEEN, change, check, only, write_case, write_decathlon


@pytest.fixture
def site(tmp_path):
    """Three clean cases."""
    return write_decathlon(tmp_path, 3)


def cut(share):
    return lambda content: content[: int(len(content) * share)]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "empty"),
        (cut(0.5), "cut short"),
        (lambda content: content[:-4], "cut short"),
        (lambda content: content[:20], "cut short"),
        (lambda content: b"no gzip" * 100, "not compressed with gzip"),
        (gzip.decompress, "not compressed with gzip"),
        (lambda content: gzip.compress(b"no nifti" * 100), "not valid NIfTI"),
        (lambda content: gzip.compress(b"tiny"), "not valid NIfTI"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-100]), "cut short"),
        (lambda content: content[:3000] + bytes(200) + content[3200:], ""),
    ],
)
def test_damaged_gz(site, damage, says):
    path = site / IMAGE
    path.write_bytes(damage(path.read_bytes()))
    assert says in only(check(site), "error", "unreadable", IMAGE).problem


def test_a_wrong_checksum_is_seen(site):
    content = bytearray((site / IMAGE).read_bytes())
    content[-8] ^= 1
    (site / IMAGE).write_bytes(content)
    assert "CRC" in only(check(site), "error", "unreadable", IMAGE).problem


@pytest.mark.parametrize("damage", [cut(0.5), cut(0), cut(0.01), lambda content: content[:-1], gzip.compress,
                                    lambda content: b"x" * len(content),
                                    lambda content: content[:344] + b"xxxx" + content[348:],
                                    lambda content: content[:42] + b"\xff\x7f" * 3 + content[48:],
                                    lambda content: content[:70] + b"\x07\x00" + content[72:]])  # fmt: skip
@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_damaged_nii(tmp_path, damage, part):
    for seed in range(3):
        write_case(tmp_path, f"c{seed}", seed, ending=".nii")
    path = tmp_path / part / "c1.nii"
    path.write_bytes(damage(path.read_bytes()))
    only(check(tmp_path), "error", "unreadable", f"{part}/c1.nii")


def test_a_file_that_vanished(site):
    dataset = find_cases(site)
    (site / LABEL).unlink()
    only(check_cases(dataset, SPLEEN), "error", "unreadable", LABEL)


def test_any_damage_to_a_header_is_a_finding_or_nothing(tmp_path):
    """No byte of a header, whatever it is set to, raises."""
    write_case(tmp_path, "a", ending=".nii")
    path = tmp_path / "imagesTr" / "a.nii"
    clean = path.read_bytes()
    random = np.random.default_rng(0)
    for position in range(352):
        damaged = bytearray(clean)
        damaged[position] = random.choice([0, 127, 128, 255])
        path.write_bytes(damaged)
        check(tmp_path)


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 12, 2), (24, 20, 1), (24, 20, 12, 1, 1)])
@pytest.mark.parametrize("file", [IMAGE, LABEL])
def test_not_three_dimensions(site, shape, file):
    change(site, file, np.zeros(shape, np.int16))
    assert " x ".join(map(str, shape)) in only(check(site), "error", "not-3d", file).problem


def test_colours_are_not_numbers(site):
    change(site, IMAGE, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    only(check(site), "error", "not-numbers", IMAGE)
