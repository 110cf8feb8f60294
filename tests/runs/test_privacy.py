"""Nothing that stands in a DICOM header reaches a file or a line of a run: every byte that is written is searched."""

import gzip
import importlib.util
import io
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset

from csrtrain import cli

IDENTIFIERS = {
    "PatientName": "Doppelgaenger^Zyxwina",
    "PatientID": "QX7731904",
    "PatientBirthDate": "19410709",
    "PatientAddress": "Irrweg 13 Wolkenheim",
    "AccessionNumber": "ACC5520918",
    "InstitutionName": "Krankenhaus Nimmerland",
    "ReferringPhysicianName": "Quacksalber^Ottokar",
    "StudyDescription": "Studie Zebrafink",
    "StudyInstanceUID": "1.2.826.0.1.77310.5520918",
    "SeriesInstanceUID": "1.2.826.0.1.77310.31",
    "SOPInstanceUID": "1.2.826.0.1.77310.44",
    "StudyDate": "20191231",
}
PARTS = ("Zyxwina", "7731904", "Wolkenheim", "5520918", "Nimmerland", "Ottokar", "Zebrafink", "826.0.1.77310")
NEEDLES = [form.lower() for form in (*IDENTIFIERS.values(), "Doppelgaenger", "Quacksalber", *PARTS)]


def contents(data):
    """What is in a file: its bytes, those of its members and of what is packed in it, one by one."""
    yield data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            for name in file.namelist():
                yield name.encode()
                yield from contents(file.read(name))
    elif data[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(data))
    elif data[:4] == b"\x89PNG":
        at = 8
        while at < len(data):
            length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            chunk = data[at + 8 : at + 8 + length]
            if kind in (b"zTXt", b"iTXt") and (packed := chunk.find(b"\x78")) >= 0:
                yield zlib.decompress(chunk[packed:])
            at += 12 + length


def found_in(data):
    """Which identifiers are in it, in any case, as ASCII or UTF-16."""
    texts = [part.lower() for part in contents(data)]
    return {
        needle
        for needle in NEEDLES
        for encoding in ("ascii", "utf-16-le", "utf-16-be")
        if any(needle.encode(encoding) in text for text in texts)
    }


def write_dicom(path, rng, photometric="MONOCHROME2", cut=0):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPInstanceUID = IDENTIFIERS["SOPInstanceUID"]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    for keyword, value in IDENTIFIERS.items():
        setattr(dataset, keyword, value)
    dataset.Rows = dataset.Columns = 48
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation = photometric
    coarse = rng.integers(0, 4096, (6, 6), dtype=np.uint16)
    dataset.PixelData = coarse.repeat(8, 0).repeat(8, 1).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[: -cut or None])


@pytest.fixture
def scans(tmp_path):
    """Twelve sound files and three broken ones, with neutral names."""
    folder, rng = tmp_path / "scans", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        write_dicom(folder / f"{i:03d}.dcm", rng)
    write_dicom(folder / "100.dcm", rng, cut=100)
    write_dicom(folder / "101.dcm", rng, cut=48 * 48 * 2 + 90)
    write_dicom(folder / "102.dcm", rng, photometric="ZYXWINA 7731904")
    table = ["path,mos", *(f"{path.name},{k / 20:.2f}" for k, path in enumerate(sorted(folder.glob("*.dcm"))))]
    (folder / "ratings.csv").write_text("\n".join(table) + "\n")
    assert all(len(found_in(path.read_bytes())) > len(IDENTIFIERS) for path in folder.glob("*.dcm"))
    return folder


def test_no_identifier_of_a_dicom_file_is_written_or_said(scans, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    out, wandb = tmp_path / "out", "csrtrain.runs.loggers.Wandb"
    more = ["--data.workers=0", f"--trainer.logger+={wandb}", "--trainer.logger.bundle=true"]
    pretrain = ["fit", "-c", "medical_contrique", f"--data.root={scans}", f"--data.cache_dir={out / 'cache'}"]
    pretrain += ["--model.backbone=test_resnet", "--model.size=16", "--data.load_size=32", "--data.batch_size=12"]
    pretrain += ["--data.modality=mri", "--data.min_epoch_length=36", "--data.max_broken=3", *more]
    pretrain += [
        "--trainer.logger.images=true",
        "--model.distortions=[rician_noise,motion_ghosting]",
        "--trainer.max_epochs=1",
    ]
    if importlib.util.find_spec("tensorboard"):
        pretrain += ["--trainer.logger+=lightning.pytorch.loggers.TensorBoardLogger", "--trainer.logger.save_dir=."]
    run, bundle = out / "run", out / "backbone.safetensors"
    assert cli.main([*pretrain, f"--trainer.default_root_dir={run}"]) == 0
    assert cli.main(["export", str(run), "-o", str(bundle)]) == 0
    head = ["fit", "-c", "nr_linear", f"--model.backbone={bundle}", f"--data.manifest={scans / 'ratings.csv'}", *more]
    head += ["--data.max_broken=3", f"--trainer.default_root_dir={out / 'head'}"]
    assert cli.main(head) == 0
    assert cli.main(["export", str(out / "head"), "-o", str(out / "metric.safetensors")]) == 0
    if "report" in cli._VERBS:
        assert cli.main(["report", str(run), str(out / "head"), "-o", str(out / "report.html")]) == 0
    assert cli.main([*pretrain, "--data.max_broken=0", f"--trainer.default_root_dir={out / 'refused'}"]) == 2
    assert cli.main(["check-data", str(scans), "--workers=1"]) == 1

    said = "\n".join([*capfd.readouterr(), *(str(warning.message) for warning in recwarn)])
    assert all(said.count(name) >= 2 for name in ("100.dcm", "101.dcm", "102.dcm"))  # named, with the reason
    assert "'Photometric Interpretation'" in said
    files = [path for folder in (out, tmp_path / "home") for path in folder.rglob("*") if path.is_file()]
    names = "\n".join(str(path) for path in files)
    for kind in (".wandb", ".ckpt", ".png", ".safetensors", ".csv", ".yaml", "environment.json", "debug.log"):
        assert kind in names
    assert {str(path): leaks for path in files if (leaks := found_in(path.read_bytes()))} == {}
    assert found_in((said + names).encode()) == set()


def test_the_search_finds_what_is_hidden(tmp_path):
    secret = IDENTIFIERS["PatientName"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", secret.upper().encode("utf-16-be"))
    picture, note = io.BytesIO(), PngImagePlugin.PngInfo()
    note.add_text("Comment", "x" * 100 + secret, zip=True)
    Image.new("L", (4, 4)).save(picture, "PNG", pnginfo=note)
    for data in (f"a{secret}b".encode(), secret.encode("utf-16-le"), packed.getvalue(), picture.getvalue()):
        for content in (data, gzip.compress(data)):
            assert secret.lower() in found_in(content)
    assert found_in(b"Doppel gaenger 1941-07-09") == set()
