"""Volumes on other grids: what MONAI makes of them point by point, axis by axis and in parts."""

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Orientation, Spacing, SpatialResample
from scipy.spatial.transform import Rotation

from fl_app.data import grid as grids
from fl_app.data.grid import Grid, slab_ranges, spaced
from fl_app.data.resampling import resample_box, resample_linearly, resample_to_nearest

SHAPE = (17, 14, 11)


def affine(spacing=(1.0, 1.0, 1.0), axes=(0, 1, 2), signs=(1, 1, 1), angles=(0, 0, 0), origin=(0.0, 0.0, 0.0)):
    """Columns: the steps along the stored axes, mm."""
    made = np.eye(4)
    made[:3, :3] = (Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing)[:, list(axes)] * signs
    made[:3, 3] = origin
    return made


SOURCES = {
    "RAS": affine((2, 2, 3)),
    "LPS": affine((1.5, 1.2, 3.3), signs=(-1, -1, 1), origin=(30, 40, -7)),
    "sagittal": affine((1.5, 1.2, 3.3), axes=(1, 2, 0), signs=(-1, 1, -1), origin=(3, 1, 9)),
    "coronal": affine((2, 2, 2), axes=(0, 2, 1), signs=(1, -1, -1)),
    "oblique": affine((2, 2, 3), angles=(10, -5, 20)),
}
WANTED = {
    "the same": lambda source: source,
    "finer": lambda source: around(source, (0.83, 1.13, 0.77)),
    "coarser": lambda source: around(source, (3.7, 4.1, 5.0)),
    "a part": lambda source: source.part((3, 2, 4), (9, 5, 6)),
    "shifted by less than a voxel": lambda source: Grid(source.shape, shifted(source, (0.25, -0.5, 0.75))),
    "beside it": lambda source: Grid((4, 5, 3), shifted(source, (40, 0, 0))),
}


def shifted(source, voxels):
    moved = source.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ voxels
    return moved


def around(source, spacing):
    """A grid in RAS that is larger than the source on all sides."""
    inner = spaced(source.in_ras(), spacing)
    return inner.part((-3, -2, -4), tuple(size + 3 for size in inner.shape))


def volume(order="C", dtype=np.int16):
    values = np.random.default_rng(0).integers(-1000, 1500, SHAPE)
    return np.array(values, dtype, order=order)


def monai(values, source, wanted, mode, padding):
    """The reference: torch's grid_sample in double precision."""
    held = MetaTensor(torch.from_numpy(values[None].astype(np.float64)), affine=torch.from_numpy(source.affine))
    resample = SpatialResample(mode=mode, padding_mode=padding, dtype=torch.float64)
    return resample(held, dst_affine=torch.from_numpy(wanted.affine), spatial_size=wanted.shape).as_tensor()[0]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("source", SOURCES)
def test_linear_interpolation_is_monais_within_a_hundredth_of_a_hounsfield_unit(source, wanted, padding, order):
    held = Grid(SHAPE, SOURCES[source])
    target = WANTED[wanted](held)
    got = resample_linearly(volume(order), held, target, padding)
    assert got.dtype == torch.float32 and got.shape == target.shape
    assert (got - monai(volume(), held, target, "bilinear", padding)).abs().max() < 1e-2


@pytest.mark.parametrize("wanted", ["the same", "finer", "coarser", "a part"])
@pytest.mark.parametrize("source", SOURCES)
def test_nearest_voxels_are_monais_but_where_two_are_as_near(source, wanted):
    held = Grid(SHAPE, SOURCES[source])
    labels = (volume() > 800).astype(np.uint8)
    target = WANTED[wanted](held)
    got = resample_to_nearest(labels, held, target)
    assert got.dtype == torch.uint8
    assert (got != monai(labels, held, target, "nearest", "border").to(torch.uint8)).double().mean() < 0.02


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("source", SOURCES)
def test_slab_by_slab_it_is_what_it_is_in_one_go_and_reads_only_what_it_needs(
    monkeypatch, source, wanted, padding, axis
):
    monkeypatch.setattr(grids, "SLAB_VOXELS", 500)
    held, values, read_planes = Grid(SHAPE, SOURCES[source]), np.stack([volume(), volume() // 2]), []
    target = WANTED[wanted](held)

    def read(box):
        read_planes.append([part.stop - part.start for part in box])
        assert all(0 <= part.start < part.stop <= size for part, size in zip(box, SHAPE, strict=True))
        return values[(slice(None), *box)]

    found = torch.empty(2, *target.shape)
    order = [axis, *({0, 1, 2} - {axis})]
    for start, stop in slab_ranges([target.shape[each] for each in order]):
        slab = target.slab(axis, start, stop)
        for channel, made in enumerate(resample_box(held, read, target.box(slab), padding)):
            found[(channel, *slab)] = made
    for channel in (0, 1):
        whole = resample_linearly(values[channel], held, target, padding)
        assert (found[channel] - whole).abs().max() < 1e-2
    if wanted == "a part" and source != "oblique":
        assert np.max(read_planes, axis=0).tolist() <= [6, 3, 2]


@pytest.mark.parametrize("source", SOURCES)
def test_a_grid_in_ras_with_another_spacing_is_where_monai_would_place_it(source):
    held = Grid(SHAPE, SOURCES[source])
    turned = Orientation("RAS", labels=None)(MetaTensor(torch.zeros(1, *SHAPE), affine=torch.from_numpy(held.affine)))
    expected = Spacing((1.5, 1.5, 2.0))(turned)
    got = spaced(held.in_ras(), (1.5, 1.5, 2.0))
    assert got.shape == tuple(expected.shape[1:])
    assert np.allclose(got.affine, expected.affine.numpy(), atol=1e-9)
