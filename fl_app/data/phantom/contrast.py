"""Hounsfield units of every tissue, without contrast agent and in the phases after it was injected."""

from __future__ import annotations

from typing import Literal

import numpy as np

Phase = Literal["native", "arterial", "portal", "late"]

# HU without contrast agent: mean, standard deviation between patients
NATIVE: dict[str, tuple[float, float]] = {
    "fat": (-103, 6),
    "skin": (5, 8),
    "muscle": (52, 5),
    "spleen": (49, 4),
    "liver": (54, 9),
    "kidney cortex": (31, 4),
    "kidney medulla": (27, 4),
    "pancreas": (36, 8),
    "artery": (42, 4),
    "vein": (42, 4),
    "bowel wall": (38, 6),
    "gallbladder": (8, 6),
    "bone": (190, 35),
    "lung": (-845, 25),
    "brain fluid": (25, 5),
}

# HU gained from the contrast agent
ENHANCEMENT: dict[Phase, dict[str, float]] = {
    "native": {},
    "arterial": {
        "muscle": 8, "spleen": 74, "liver": 14, "kidney cortex": 130, "kidney medulla": 35, "pancreas": 65,
        "artery": 245, "vein": 35, "bowel wall": 45,
    },
    "portal": {
        "muscle": 16, "spleen": 68, "liver": 54, "kidney cortex": 130, "kidney medulla": 105, "pancreas": 52,
        "artery": 112, "vein": 122, "bowel wall": 48,
    },
    "late": {
        "muscle": 18, "spleen": 42, "liver": 40, "kidney cortex": 95, "kidney medulla": 100, "pancreas": 32,
        "artery": 70, "vein": 74, "bowel wall": 30,
    },
}  # fmt: skip


def draw_tissues(random: np.random.Generator, phase: Phase) -> dict[str, float]:
    """Draws one patient's mean HU of every tissue; the enhancement varies by about 15 % between patients."""
    dose = float(np.clip(random.normal(1.0, 0.15), 0.65, 1.35))
    gained = ENHANCEMENT[phase]
    return {
        tissue: mean + deviation * float(random.standard_normal()) + dose * gained.get(tissue, 0.0)
        for tissue, (mean, deviation) in NATIVE.items()
    }
