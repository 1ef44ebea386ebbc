"""The character of each site: what makes one hospital's scans and annotations unlike another's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fl_app.data.phantom.contrast import Phase


@dataclass(frozen=True)
class SiteCharacter:
    """How one site scans, whom it scans and how it annotates.

    Noise is the standard deviation in HU at the light matrix; lengths are mm; pairs are ranges.
    """

    name: str
    cases: int
    phase: Phase
    noise_hu: float
    # width (standard deviation) of the scanner's blur, and of the noise grain that comes with it
    blur_mm: float
    grain_mm: float
    # how far the reconstruction kernel overshoots at edges: 0 soft, 0.8 sharp
    sharpening: float
    slice_mm: tuple[float, float]
    # size of the patients relative to an average adult, and the fat under their skin
    patient_scale: tuple[float, float]
    fat_mm: tuple[float, float]
    # typical volume of the spleen before scaling by the patient's size
    spleen_ml: tuple[float, float]
    # the annotators' outline lies this far outside the organ's edge; negative is inside
    outline_mm: float
    # the annotators include the vessels and the fat of the hilum
    includes_hilum: bool
    # the axes of the stored array, each named by the side of the patient it runs towards
    orientation: str
    # positive oral contrast agent in stomach and bowel: share of the patients
    oral_contrast: float = 0.3


SITE_CHARACTERS: tuple[SiteCharacter, ...] = (
    SiteCharacter(
        name="university hospital, portal venous phase, soft kernel", cases=16, phase="portal",
        noise_hu=10, blur_mm=1.6, grain_mm=2.4, sharpening=0.0, slice_mm=(4.5, 5.0),
        patient_scale=(0.94, 1.06), fat_mm=(8, 24), spleen_ml=(160, 380), outline_mm=0.0,
        includes_hilum=False, orientation="RAS",
    ),
    SiteCharacter(
        name="trauma centre, arterial phase, sharp kernel", cases=12, phase="arterial",
        noise_hu=20, blur_mm=0.8, grain_mm=0.8, sharpening=0.4, slice_mm=(3.6, 4.2),
        patient_scale=(0.84, 0.98), fat_mm=(3, 12), spleen_ml=(170, 340), outline_mm=1.0,
        includes_hilum=True, orientation="LPS", oral_contrast=0.0,
    ),
    SiteCharacter(
        name="community hospital, no contrast agent, low dose", cases=9, phase="native",
        noise_hu=13, blur_mm=1.8, grain_mm=2.2, sharpening=0.0, slice_mm=(5.0, 6.0),
        patient_scale=(1.02, 1.16), fat_mm=(20, 42), spleen_ml=(150, 300), outline_mm=-1.0,
        includes_hilum=False, orientation="LAS", oral_contrast=0.6,
    ),
    SiteCharacter(
        name="haematology centre, enlarged spleens, portal venous phase", cases=10, phase="portal",
        noise_hu=15, blur_mm=1.1, grain_mm=1.6, sharpening=0.3, slice_mm=(4.0, 5.0),
        patient_scale=(0.9, 1.05), fat_mm=(4, 18), spleen_ml=(380, 640), outline_mm=0.3,
        includes_hilum=False, orientation="RAI",
    ),
    SiteCharacter(
        name="children's hospital, late phase, low dose", cases=8, phase="late",
        noise_hu=21, blur_mm=1.3, grain_mm=1.8, sharpening=0.2, slice_mm=(3.2, 3.8),
        patient_scale=(0.72, 0.84), fat_mm=(2, 8), spleen_ml=(200, 380), outline_mm=0.0,
        includes_hilum=True, orientation="PSR",
    ),
)  # fmt: skip


def character_of(site: int) -> SiteCharacter:
    """Returns the character of a site (0, 1, ...): a named one, or beyond them a variation of one."""
    character = SITE_CHARACTERS[site % len(SITE_CHARACTERS)]
    if site < len(SITE_CHARACTERS):
        return character
    random = np.random.default_rng([site, 1])
    slices = float(random.uniform(0.9, 1.1))
    return replace(
        character,
        name=f"{character.name}, variation {site // len(SITE_CHARACTERS)}",
        cases=max(6, character.cases + int(random.integers(-3, 4))),
        noise_hu=round(character.noise_hu * float(random.uniform(0.7, 1.3)), 1),
        sharpening=round(float(random.uniform(0.0, 0.6)), 2),
        slice_mm=(character.slice_mm[0] * slices, character.slice_mm[1] * slices),
        outline_mm=round(float(random.uniform(-0.8, 0.8)), 2),
        includes_hilum=bool(random.integers(2)),
    )
