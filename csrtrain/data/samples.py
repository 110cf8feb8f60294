"""The few real images that ship inside installed packages: enough to see that everything works, without a download.

They are looked up on disk in the wheels of pydicom, nibabel, scikit-image, scikit-learn and matplotlib. No phantom, no
drawing, nothing with a side below 32 pixels. Far too few for a usable metric.
"""

from importlib.util import find_spec
from pathlib import Path

_Row = tuple[str, str, range | None]

_MEDICAL: tuple[_Row, ...] = (
    # package, file inside it, frames
    ("nibabel", "tests/data/example4d.nii.gz", range(24)),  # MRI of a brain, echo-planar, axial, first time point
    ("nibabel", "tests/data/anatomical.nii", range(25)),  # MRI, T1: middle of a brain, axial
    ("pydicom", "data/test_files/CT_small.dcm", None),  # CT, chest: a vertebra
    ("pydicom", "data/test_files/J2K_pixelrep_mismatch.dcm", None),  # CT, head at the skull base
    ("pydicom", "data/test_files/MR_small.dcm", None),  # MRI, detail
    ("pydicom", "data/test_files/examples_overlay.dcm", None),  # MRI, abdomen with contrast agent
    ("pydicom", "data/test_files/JPEG2000.dcm", None),  # nuclear medicine: bone scan of a whole body
    ("pydicom", "data/test_files/examples_ybr_color.dcm", range(0, 30, 5)),  # ultrasound: a beating heart
    ("pydicom", "data/test_files/examples_rgb_color.dcm", None),  # ultrasound, power Doppler: lymph node
    ("skimage", "data/retina.jpg", None),  # fundus photograph
    ("skimage", "data/microaneurysms.png", None),  # fundus, detail with microaneurysms
    ("skimage", "data/ihc.png", None),  # histology: colon, immunohistochemical stain
    ("skimage", "data/cell.png", None),  # microscopy: a cell against background
)

_NATURAL: tuple[_Row, ...] = (
    ("sklearn", "datasets/images/china.jpg", None),  # temple by a lake
    ("sklearn", "datasets/images/flower.jpg", None),  # dahlia
    ("skimage", "data/astronaut.png", None),  # portrait
    ("skimage", "data/camera.png", None),  # man with a camera, grey
    ("skimage", "data/chelsea.png", None),  # cat
    ("skimage", "data/coffee.png", None),  # cup of coffee
    ("skimage", "data/coins.png", None),  # Greek coins, grey
    ("skimage", "data/grass.png", None),  # grass, grey
    ("skimage", "data/gravel.png", None),  # gravel, grey
    ("skimage", "data/hubble_deep_field.jpg", None),  # galaxies
    ("skimage", "data/moon.png", None),  # surface of the moon, grey
    ("skimage", "data/motorcycle_left.png", None),  # motorcycle in a garage
    ("skimage", "data/rocket.jpg", None),  # rocket at night
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", None),  # portrait
)


def medical() -> list[str]:
    """Addresses of real medical images: MRI, CT, ultrasound, nuclear medicine, fundus, histology, microscopy.

    Raises:
        FileNotFoundError: a package does not ship the file.
    """
    return _addresses(_MEDICAL)


def natural() -> list[str]:
    """Addresses of photographs.

    Raises:
        FileNotFoundError: a package does not ship the file.
    """
    return _addresses(_NATURAL)


def _addresses(rows: tuple[_Row, ...]) -> list[str]:
    found = []
    for package, name, frames in rows:
        spec = find_spec(package)
        path = Path(str(spec.origin)).parent / name if spec is not None else Path(name)
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected the sample image {name} inside the package {package}, got none. Install it from its wheel, "
                "or train on your own images."
            )
        found += [str(path)] if frames is None else [f"{path}#{k}" for k in frames]
    return found
