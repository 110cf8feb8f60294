"""The views of each kind of image: what varies, how far, and why.

Numbers without a source are our choice: mild, because a metric of quality must keep seeing what the views vary.
A view is made in this order: crop, flip, colour, blur, then the imaging chain (gain, field, noise, window, gamma).
"""

from dataclasses import dataclass
from typing import Literal

from csrtrain.augment.intensity import NoiseKind

Modality = Literal["natural", "medical", "mri", "ct", "xray", "fundus", "histology", "ultrasound"]


@dataclass(frozen=True)
class Op:
    """An operation: the chance that a view gets it, the range of its one parameter (uniform), and the reason."""

    chance: float
    low: float
    high: float
    reason: str


@dataclass(frozen=True)
class Crop:
    """Random resized crop: area as a part of the image's, uniform; width / height log-uniform in [1/ratio, ratio]."""

    smallest: float
    ratio: float
    reason: str


@dataclass(frozen=True)
class Jitter:
    """Colour jitter: factors uniform in 1 +- brightness, contrast, saturation; hue in +- hue turns."""

    chance: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    reason: str


@dataclass(frozen=True)
class Stain:
    """Stain jitter: scales uniform in 1 +- scale, shifts in +- shift, per stain, units of skimage's rgb2hed."""

    chance: float
    scale: float
    shift: float
    reason: str


@dataclass(frozen=True)
class Field:
    """Uneven gain: Legendre coefficients of its logarithm uniform in +- strength, up to a total degree (at most 3)."""

    chance: float
    strength: float
    degree: int
    reason: str


@dataclass(frozen=True)
class Noise:
    """Noise whose sigma is uniform in [0, sigma], parts of the white level; `colored`: its own in each channel."""

    chance: float
    kind: NoiseKind
    sigma: float
    colored: bool
    reason: str


@dataclass(frozen=True)
class Window:
    """Display window: width factor log-uniform in [1/width, width], level shift in +- level, parts of the range."""

    chance: float
    width: float
    level: float
    reason: str


@dataclass(frozen=True)
class Setting:
    """The views of one kind of image. An operation that is left out on purpose has chance 0 and says why.

    blur: sigma in pixels of the view. gain: factor. gamma: exponent, log-uniform. With other channel counts than 3
    the colour operations (saturation and hue of the jitter, grayscale, stain) are left out.
    """

    crop: Crop
    flip_columns: Op
    flip_rows: Op
    transpose: Op
    blur: Op
    jitter: Jitter | None = None
    grayscale: Op | None = None
    stain: Stain | None = None
    gain: Op | None = None
    field: Field | None = None
    noise: Noise | None = None
    window: Window | None = None
    gamma: Op | None = None


def _no_flip(reason: str) -> Op:
    return Op(0.0, 0.0, 0.0, reason)


def _flip(reason: str) -> Op:
    return Op(0.5, 0.0, 0.0, reason)


_UP_MATTERS = _no_flip("up and down differ in how such images are taken")
_ORIENTED = _no_flip("turned images do not occur")

SETTINGS: dict[Modality, Setting] = {
    # MoCo v2 (arXiv 2003.04297; facebookresearch/moco, main_moco.py --aug-plus): SimCLR's operations, half its jitter.
    "natural": Setting(
        crop=Crop(0.2, 4 / 3, "MoCo v2: views that share content but not scale and place"),
        flip_columns=_flip("MoCo v2: a mirrored photograph is as likely"),
        flip_rows=_no_flip("MoCo v2: photographs have an up"),
        transpose=_ORIENTED,
        jitter=Jitter(0.8, 0.4, 0.4, 0.4, 0.1, "MoCo v2: colour histograms alone must not tell images apart"),
        grayscale=Op(0.2, 0.0, 0.0, "MoCo v2: the same reason as the jitter"),
        blur=Op(0.5, 0.1, 2.0, "SimCLR: fine texture alone must not tell images apart"),
    ),
    "medical": Setting(
        crop=Crop(0.3, 1.2, "position and zoom vary; shapes of organs stay"),
        flip_columns=_no_flip("the side of the body may matter"),
        flip_rows=_UP_MATTERS,
        transpose=_ORIENTED,
        blur=Op(0.3, 0.1, 1.0, "resolution differs between devices"),
        gain=Op(0.8, 0.8, 1.2, "exposure or receiver gain"),
        noise=Noise(0.5, "gaussian", 0.03, False, "dose, exposure or averaging differ"),
        gamma=Op(0.5, 0.7, 1.4, "display curves differ between makers"),
    ),
    "mri": Setting(
        crop=Crop(0.3, 1.2, "field of view and slice position vary; shapes of organs stay"),
        flip_columns=_no_flip("the side of a lesion is part of the finding"),
        flip_rows=_UP_MATTERS,
        transpose=_ORIENTED,
        blur=Op(0.3, 0.1, 1.0, "matrix size and partial Fourier change the resolution"),
        gain=Op(0.8, 0.8, 1.2, "intensities have no unit: receiver gain and scaling are arbitrary"),
        field=Field(0.5, 0.2, 3, "bias field: coils receive unevenly"),
        noise=Noise(0.5, "rician", 0.03, False, "magnitude images have Rician noise"),
        gamma=Op(0.5, 0.7, 1.4, "echo and repetition times change the contrast between tissues"),
    ),
    "ct": Setting(
        crop=Crop(0.3, 1.2, "field of view and slice position vary; shapes of organs stay"),
        flip_columns=_no_flip("the side of liver, heart and lesions matters"),
        flip_rows=_no_flip("the table lies below"),
        transpose=_ORIENTED,
        blur=Op(0.3, 0.1, 1.0, "soft and sharp reconstruction kernels"),
        noise=Noise(0.5, "gaussian", 0.03, False, "tube current; after reconstruction the noise is near normal"),
        window=Window(0.8, 1.25, 0.1, "readers shift and widen the window; Hounsfield units leave no other gain"),
    ),
    "xray": Setting(
        crop=Crop(0.3, 1.2, "collimation and position vary; the cardiothoracic ratio stays near"),
        flip_columns=_no_flip("the heart lies left, side markers are letters"),
        flip_rows=_no_flip("the diaphragm lies below"),
        transpose=_ORIENTED,
        blur=Op(0.3, 0.1, 1.0, "focal spot, motion and detector pitch"),
        gain=Op(0.8, 0.8, 1.2, "exposure"),
        field=Field(0.3, 0.1, 1, "heel effect: exposure falls off along the tube's axis"),
        noise=Noise(0.5, "gaussian", 0.02, False, "quantum noise, near normal after the detector's logarithm"),
        gamma=Op(0.5, 0.7, 1.4, "look-up curves differ between makers"),
    ),
    "fundus": Setting(
        crop=Crop(0.3, 1.2, "field angle and centring vary"),
        flip_columns=_flip("a mirrored left eye looks as a right eye"),
        flip_rows=_no_flip("the fovea lies below the middle of the disc"),
        transpose=_ORIENTED,
        jitter=Jitter(0.8, 0.2, 0.2, 0.2, 0.02, "flash, white balance and pigment; hue stays: redness is a finding"),
        blur=Op(0.3, 0.1, 1.0, "focus and clouded media"),
        field=Field(0.5, 0.2, 2, "light falls off when the pupil is off the axis"),
        noise=Noise(0.5, "gaussian", 0.02, True, "sensor noise of a colour camera"),
    ),
    "histology": Setting(
        crop=Crop(0.3, 4 / 3, "magnification varies a little between scanners"),
        flip_columns=_flip("a section has no side"),
        flip_rows=_flip("a section has no up"),
        transpose=_flip("with both flips: all quarter turns"),
        stain=Stain(0.8, 0.1, 0.005, "staining differs between laboratories and days"),
        jitter=Jitter(0.5, 0.1, 0.1, 0.0, 0.0, "lamp and exposure; colour belongs to the stain"),
        blur=Op(0.3, 0.1, 1.0, "focus differs across a slide"),
        noise=Noise(0.3, "gaussian", 0.02, True, "sensor noise of a colour camera"),
    ),
    "ultrasound": Setting(
        crop=Crop(0.3, 1.2, "depth setting and place of the probe vary"),
        flip_columns=_flip("a probe turned by 180 degrees mirrors the image"),
        flip_rows=_no_flip("depth and shadows point down"),
        transpose=_ORIENTED,
        blur=Op(0.3, 0.1, 1.0, "frequency and focal depth change the resolution"),
        gain=Op(0.8, 0.8, 1.2, "overall gain"),
        field=Field(0.5, 0.2, 2, "time-gain compensation and contact of the probe"),
        noise=Noise(0.5, "speckle", 0.1, False, "speckle multiplies the echo"),
        gamma=Op(0.5, 0.7, 1.4, "dynamic range of the log compression"),
    ),
}
