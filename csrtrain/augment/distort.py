"""The distortion bank: one row per type, and which types suit which kind of image.

The natural rows are the 25 types of KADIS-700k with its five values each (Lin et al., "DeepFL-IQA: weak supervision for
deep IQA feature learning", arXiv 2001.08113; values as its generator has them, which CONTRIQUE's classes come from).
The values of the medical rows are ours.

A level is a number of the table, 1 to 5. A severity says how far from pristine a level is, in the unit of the row: some
of the types are signed, so that their level does not. Severity 0 means that nothing changes: such a class is pristine.
Of types whose values pass the one that changes nothing, the table has severities with a sign, so that they are right
between two levels too; their size is what counts.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from csrtrain.augment.distortions import acquisition, blur, color, compression, contrast, mri, noise, spatial
from csrtrain.augment.settings import Modality

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images (n,C,H,W) in [0,1], values (n,), seeds (n,)) -> images (n,C,H,W), clamped afterwards."""

LEVELS = 5


class Distortion(NamedTuple):
    """A type of distortion.

    name: what users, labels and plots call it.
    function: makes it; see `Function`.
    values: of levels 1 to 5, in `unit`.
    unit: of the values.
    group: blur, color, compression, noise, brightness, spatial, sharpness or acquisition.
    severities: of levels 1 to 5; 0 where nothing changes, and with a sign where the values lie on both sides of that.
    source: where the values are from.
    color: whether it needs three channels.
    chroma: whether it changes colours alone, so that a grey image of three channels stays as it is.
    in_worker: whether it needs a CPU codec, which runs in the loader's workers.
    """

    name: str
    function: Function
    values: tuple[float, float, float, float, float]
    unit: str
    group: str
    severities: tuple[float, float, float, float, float]
    source: str
    color: bool = False
    chroma: bool = False
    in_worker: bool = False


_KADIS = "KADIS-700k"
_RISING = (1.0, 2.0, 3.0, 4.0, 5.0)
_FROM_TWO = (0.0, 1.0, 2.0, 3.0, 4.0)  # level 1 changes nothing

NATURAL = (
    Distortion("gaussian_blur", blur.gaussian_blur, (0.1, 0.5, 1, 2, 5), "sigma, px", "blur", _FROM_TWO, _KADIS),
    Distortion("lens_blur", blur.disk_blur, (1, 2, 4, 6, 8), "radius, px", "blur", _RISING, _KADIS),
    Distortion("motion_blur", blur.motion_blur, (1, 2, 4, 6, 10), "length, px", "blur", _FROM_TWO, _KADIS),
    Distortion(
        "color_diffusion",
        color.color_diffusion,
        (1, 3, 6, 8, 12),
        "factor",
        "color",
        _RISING,
        _KADIS,
        color=True,
        chroma=True,
    ),
    Distortion("color_shift", color.color_shift, (1, 3, 6, 8, 12), "px", "color", _RISING, _KADIS, color=True),
    Distortion(
        "color_quantization",
        color.color_quantization,
        (64, 48, 32, 16, 8),
        "colours",
        "color",
        _RISING,
        _KADIS,
        color=True,
    ),
    Distortion(
        "saturate_hsv",
        color.saturate_hsv,
        (0.4, 0.2, 0.1, 0, -0.4),
        "factor",
        "color",
        (0.6, 0.8, 0.9, 1.0, 1.4),
        _KADIS,
        color=True,
        chroma=True,
    ),
    Distortion(
        "saturate_lab",
        color.saturate_lab,
        (1, 2, 3, 6, 9),
        "factor",
        "color",
        (0, 1, 2, 5, 8),
        _KADIS,
        color=True,
        chroma=True,
    ),
    Distortion(
        "jpeg2000",
        compression.jpeg2000,
        (16, 32, 45, 120, 400),
        "compression ratio",
        "compression",
        _RISING,
        _KADIS,
        in_worker=True,
    ),
    Distortion("jpeg", compression.jpeg, (43, 36, 24, 7, 4), "quality", "compression", _RISING, _KADIS),
    Distortion(
        "white_noise", noise.white_noise, (0.001, 0.002, 0.003, 0.005, 0.01), "variance", "noise", _RISING, _KADIS
    ),
    Distortion(
        "white_noise_ycbcr",
        noise.white_noise_ycbcr,
        (0.0001, 0.0005, 0.001, 0.002, 0.003),
        "variance",
        "noise",
        _RISING,
        _KADIS,
        color=True,
    ),
    Distortion(
        "impulse_noise", noise.impulse_noise, (0.001, 0.005, 0.01, 0.02, 0.03), "density", "noise", _RISING, _KADIS
    ),
    Distortion(
        "multiplicative_noise",
        noise.multiplicative_noise,
        (0.001, 0.005, 0.01, 0.02, 0.05),
        "variance",
        "noise",
        _RISING,
        _KADIS,
    ),
    Distortion("denoise", noise.denoise, (0.01, 0.03, 0.05, 0.1, 0.15), "variance", "noise", _RISING, _KADIS),
    Distortion("brighten", contrast.brighten, (0.1, 0.2, 0.4, 0.7, 1.1), "amount", "brightness", _RISING, _KADIS),
    Distortion("darken", contrast.darken, (0.05, 0.1, 0.2, 0.4, 0.8), "amount", "brightness", _RISING, _KADIS),
    Distortion(
        "mean_shift",
        contrast.mean_shift,
        (0.15, 0.08, 0, -0.08, -0.15),
        "shift",
        "brightness",
        (0.15, 0.08, 0, -0.08, -0.15),
        _KADIS,
    ),
    Distortion("jitter", spatial.jitter, (0.05, 0.1, 0.2, 0.5, 1), "sigma, px", "spatial", _RISING, _KADIS),
    Distortion(
        "non_eccentricity_patches",
        spatial.non_eccentricity_patches,
        (20, 40, 60, 80, 100),
        "patches",
        "spatial",
        _RISING,
        _KADIS,
    ),
    Distortion("pixelate", spatial.pixelate, (0.01, 0.05, 0.1, 0.2, 0.5), "strength", "spatial", _RISING, _KADIS),
    Distortion("quantize_levels", contrast.quantize_levels, (20, 16, 13, 10, 7), "levels", "spatial", _RISING, _KADIS),
    Distortion("color_blocks", spatial.color_blocks, (2, 4, 6, 8, 10), "blocks", "spatial", _RISING, _KADIS),
    Distortion("sharpen", contrast.sharpen, (1, 2, 3, 6, 12), "amount", "sharpness", _RISING, _KADIS),
    Distortion(
        "change_contrast",
        contrast.change_contrast,
        (0.3, 0.15, 0, -0.4, -0.6),
        "amount",
        "sharpness",
        (0.5, 0.35, 0.2, -0.2, -0.4),  # distance from -0.2, which changes nothing
        _KADIS,
    ),
)


_OURS = "ours"

MEDICAL = (
    Distortion("rician_noise", mri.rician_noise, (0.01, 0.02, 0.04, 0.07, 0.12), "sigma", "noise", _RISING, _OURS),
    Distortion(
        "poisson_noise", acquisition.poisson_noise, (3000, 1000, 300, 100, 40), "quanta", "noise", _RISING, _OURS
    ),
    Distortion(
        "low_dose_noise", acquisition.low_dose_noise, (0.01, 0.02, 0.04, 0.07, 0.12), "sigma", "noise", _RISING, _OURS
    ),
    Distortion("bias_field", mri.bias_field, (0.1, 0.2, 0.35, 0.55, 0.8), "log gain", "acquisition", _RISING, _OURS),
    Distortion(
        "gibbs_ringing", mri.gibbs_ringing, (0.7, 0.5, 0.36, 0.25, 0.16), "share kept", "acquisition", _RISING, _OURS
    ),
    Distortion(
        "kspace_spike", mri.kspace_spike, (0.03, 0.06, 0.1, 0.18, 0.3), "amplitude", "acquisition", _RISING, _OURS
    ),
    Distortion(
        "motion_ghosting", mri.motion_ghosting, (0.5, 1, 2, 3.5, 6), "amplitude, px", "acquisition", _RISING, _OURS
    ),
    Distortion("undersampling", mri.undersampling, (1.2, 1.5, 2, 3, 5), "acceleration", "acquisition", _RISING, _OURS),
    Distortion(
        "sparse_view", acquisition.sparse_view, (96, 64, 40, 26, 16), "projections", "acquisition", _RISING, _OURS
    ),
    Distortion("speckle", acquisition.speckle, (0.1, 0.2, 0.4, 0.7, 1.2), "diffuse", "noise", _RISING, _OURS),
    Distortion(
        "window_shift", acquisition.window_shift, (0.1, 0.2, 0.3, 0.45, 0.6), "share", "brightness", _RISING, _OURS
    ),
    Distortion("through_plane_blur", acquisition.through_plane_blur, (1.5, 2, 3, 4.5, 7), "px", "blur", _RISING, _OURS),
    Distortion("banding", contrast.quantize_levels, (48, 32, 20, 12, 7), "levels", "brightness", _RISING, _OURS),
)

ROWS = {row.name: row for row in (*NATURAL, *MEDICAL)}

BANKS: dict[Modality, tuple[str, ...]] = {
    "natural": tuple(row.name for row in NATURAL),
    # What any scanner, reader or archive may do.
    "medical": (
        *("gaussian_blur", "motion_blur", "through_plane_blur", "jpeg", "jpeg2000", "white_noise", "poisson_noise"),
        *("speckle", "bias_field", "gibbs_ringing", "window_shift", "banding", "brighten", "darken", "sharpen"),
    ),
    "mri": (
        *("gaussian_blur", "through_plane_blur", "jpeg", "jpeg2000", "rician_noise", "bias_field", "gibbs_ringing"),
        *("kspace_spike", "motion_ghosting", "undersampling", "window_shift", "banding"),
    ),
    # A sharp reconstruction kernel is a sharpening.
    "ct": (
        *("gaussian_blur", "motion_blur", "through_plane_blur", "jpeg", "jpeg2000", "low_dose_noise", "sparse_view"),
        *("window_shift", "banding", "sharpen"),
    ),
    # The heel effect and a grid off centre are a bias field.
    "xray": (
        *("gaussian_blur", "motion_blur", "jpeg", "jpeg2000", "poisson_noise", "bias_field", "window_shift"),
        *("banding", "brighten", "darken", "sharpen", "change_contrast"),
    ),
    # Defocus, movement of the eye, uneven flash, lateral chromatic aberration of the lens.
    "fundus": (
        *("lens_blur", "motion_blur", "jpeg", "white_noise", "impulse_noise", "bias_field", "color_shift"),
        *("saturate_hsv", "brighten", "darken", "change_contrast", "sharpen"),
    ),
    # Focus, the edge of the lamp, thickness of the section, strength of the stain.
    "histology": (
        *("lens_blur", "gaussian_blur", "jpeg", "jpeg2000", "white_noise", "bias_field", "color_shift"),
        *("saturate_lab", "saturate_hsv", "brighten", "darken", "change_contrast", "sharpen"),
    ),
    # Gain over depth is a bias field.
    "ultrasound": (
        *("gaussian_blur", "motion_blur", "jpeg", "speckle", "white_noise", "bias_field", "window_shift", "banding"),
        *("darken", "change_contrast", "pixelate"),
    ),
}
"""Names of the types that suit each modality."""


def rows_for(
    modality: Modality, channels: int, names: list[str] | None = None, jpeg2000: bool = False
) -> tuple[Distortion, ...]:
    """The types that suit a kind of image.

    Args:
        modality: which kind.
        channels: of the images; types that need three are left out with other counts.
        names: of the types wanted instead, of all modalities.
        jpeg2000: with JPEG2000, which needs a CPU codec, where the kind has it.

    Raises:
        ValueError: a name is unknown, repeated, or needs three channels.
    """
    if names is None:
        rows = [ROWS[name] for name in BANKS[modality]]
        return tuple(row for row in rows if (channels == 3 or not row.color) and (jpeg2000 or not row.in_worker))
    unknown = sorted(set(names) - set(ROWS))
    if unknown or len(set(names)) < len(names) or not names:
        raise ValueError(
            f"Expected different names of distortions, got {', '.join(unknown or names) or 'none'}. "
            f"There are {', '.join(ROWS)}."
        )
    colored = [name for name in names if ROWS[name].color and channels != 3]
    if colored:
        raise ValueError(f"Expected types for {channels} channel(s), got {', '.join(colored)}. Leave them out.")
    return tuple(ROWS[name] for name in names)
