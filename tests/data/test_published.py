import csv
import json

import numpy as np
import openpyxl
import pytest
from PIL import Image
from scipy.io import savemat

from csrtrain.augment.distort import NATURAL
from csrtrain.cli import main
from csrtrain.data import layouts, tables
from csrtrain.data.manifest import read_manifest
from csrtrain.data.published import SETS, format_published, read_published, write_published

COUNTS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}


@pytest.fixture
def images(tmp_path):
    """Makes the images of the given names below tmp_path/set; the format is that of the name."""
    made = {}

    def images(*names):
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix not in made:
                Image.new("L", (2, 2), 9).save(path)
                made[path.suffix] = path.read_bytes()
            path.write_bytes(made[path.suffix])
        return tmp_path / "set"

    return images


@pytest.fixture
def rows(tmp_path):
    """Writes the manifest of tmp_path/set beside it; its rows as texts, and what `read_manifest` makes of it."""

    def rows(name, everything=False):
        output = str(tmp_path / "manifest.csv")
        write_published(read_published(name, str(tmp_path / "set"), everything), output)
        with open(output, newline="") as file:
            written = list(csv.DictReader(file))
        return written, None if name.startswith("bapps") else read_manifest(output)

    return rows


def cells(*texts):
    return np.array([np.array([text]) for text in texts] + [None], dtype=object)[:-1]


def live(images, realigned=True):
    names = [f"{kind}/img{k}.bmp" for kind, count in COUNTS.items() for k in range(1, count + 1)]
    folder = images(*names, "refimgs/bikes.bmp", "refimgs/ocean.bmp")
    references = ["bikes.bmp"] * 227 + ["ocean.bmp"] * 755
    dmos, copies = np.arange(982) / 10, np.zeros(982, dtype=np.uint8)
    dmos[[1, 981]], copies[[1, 981]] = 0, 1
    savemat(folder / "refnames_all.mat", {"refnames_all": cells(*references)[None]})
    savemat(folder / "dmos.mat", {"dmos": dmos[None] + 1, "orgs": copies[None]})
    if realigned:
        new = {"dmos_new": dmos[None] - 3, "dmos_std": np.full((1, 982), 2.5), "orgs": copies[None]}
        savemat(folder / "dmos_realigned.mat", new)
    return folder


def test_live_has_realigned_dmos_and_leaves_out_the_copies_of_references(images, rows, capsys):
    folder = live(images)
    (folder / "jp2k" / "info.txt").write_text("bikes.bmp img1.bmp 0.2\nbikes.bmp img2.bmp 0\n\n")
    written, manifest = rows("live")
    assert len(written) == 980 and not manifest.higher_is_better
    assert written[0] == {
        "path": "set/jp2k/img1.bmp",
        "reference": "set/refimgs/bikes.bmp",
        "dmos": "-3.0",
        "group": "bikes",
        "type": "jp2k",
        "std": "2.5",
    }
    assert [row["path"] for row in written[:2]] == ["set/jp2k/img1.bmp", "set/jp2k/img3.bmp"]
    first_of = {row["type"]: row for row in reversed(written)}
    assert {kind: row["path"] for kind, row in first_of.items()} == {kind: f"set/{kind}/img1.bmp" for kind in COUNTS}
    assert {kind: float(row["dmos"]) for kind, row in first_of.items()} == pytest.approx(
        {"jp2k": -3, "jpeg": 19.7, "wn": 43, "gblur": 60.4, "fastfading": 77.8}
    )
    assert first_of["jpeg"]["reference"] == "set/refimgs/ocean.bmp"
    assert len(np.unique(manifest.groups)) == 2 and manifest.splits is None
    notes = read_published("live", str(folder)).notes
    assert notes[0].startswith("2 rows of type pristine are left out") and len(notes) == 2  # info.txt agrees


def test_live_keeps_the_copies_marked_when_asked(images, rows):
    live(images)
    written, manifest = rows("live", everything=True)
    assert [i for i, row in enumerate(written) if row["type"] == "pristine"] == [1, 981]
    assert written[981]["path"] == "set/fastfading/img174.bmp" and len(manifest) == 982


def test_live_without_realigned_scores_says_so(images, rows, tmp_path):
    folder = live(images, realigned=False)
    assert rows("live")[0][0]["dmos"] == "1.0" and "std" not in rows("live")[0][0]
    assert "dmos.mat was read" in read_published("live", str(folder)).notes[0]


def test_live_in_the_folder_of_its_archive_and_with_references_that_disagree(images, tmp_path):
    folder = live(images)
    (tmp_path / "outer").mkdir()
    (folder / "dmos_realigned.mat").rename(tmp_path / "outer" / "dmos_realigned.mat")
    folder = folder.rename(tmp_path / "outer" / "databaserelease2")
    assert read_published("live", str(tmp_path / "outer")).rows[0]["std"] == "2.5"
    (folder / "wn" / "info.txt").write_text("bikes.bmp img7.bmp 0.1\n")
    found = read_published("live", str(tmp_path / "outer"))
    assert "info.txt names other references" in found.notes[0] and "for 1 images, first wn/img7.bmp" in found.notes[0]
    assert {row["reference"].rpartition("/")[2] for row in found.rows if row["type"] == "wn"} == {"ocean.bmp"}


def csiq(images, *lines):
    folder = images("src_imgs/1600.png", "src_imgs/Turtle.png")
    for kind in ("awgn", "blur", "contrast", "fnoise", "jpeg", "jpeg2000"):
        (folder / "dst_imgs" / kind).mkdir(parents=True)
    images("dst_imgs/awgn/1600.AWGN.1.png", "dst_imgs/jpeg2000/turtle.jpeg2000.5.png", "dst_imgs/blur/1600.BLUR.2.png")
    book = openpyxl.Workbook()
    book.active.title = "old"
    sheet = book.create_sheet("all_by_image")
    for line in (
        [],
        ["CSIQ"],
        [],
        [None] * 3 + ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"],
        *lines,
    ):
        sheet.append(line)
    book.save(folder / "csiq.DMOS.xlsx")
    return folder


def test_csiq_reads_the_sheet_by_image(images, rows):
    csiq(
        images,
        [None, None, None, 1600, 1, "noise", 1, 0.061, 0.062],
        [None, None, None, 1600, 5, "blur", 2.0, 0.1, 1.0],
        [None, None, None, "turtle", 3, "jpeg 2000", 5, 0.05, 0.9],
        [None, None, None, None, None, None, None, None, None],
    )
    written, manifest = rows("csiq")
    assert written == [
        {
            "path": "set/dst_imgs/awgn/1600.AWGN.1.png",
            "reference": "set/src_imgs/1600.png",
            "dmos": "0.062",
            "group": "1600",
            "type": "awgn",
            "level": "1",
            "std": "0.061",
        },
        {
            "path": "set/dst_imgs/blur/1600.BLUR.2.png",
            "reference": "set/src_imgs/1600.png",
            "dmos": "1",
            "group": "1600",
            "type": "blur",
            "level": "2",
            "std": "0.1",
        },
        {
            "path": "set/dst_imgs/jpeg2000/turtle.jpeg2000.5.png",
            "reference": "set/src_imgs/Turtle.png",  # as it is on disk
            "dmos": "0.9",
            "group": "turtle",
            "type": "jpeg2000",
            "level": "5",
            "std": "0.05",
        },
    ]
    assert not manifest.higher_is_better and manifest.groups.tolist() == [0, 0, 1]


def test_csiq_refuses_another_type(images):
    folder = csiq(images, [None, None, None, 1600, 1, "gblur", 1, 0.061, 0.062])
    with pytest.raises(ValueError, match="Expected one of noise, .* as dst_type in .*csiq.DMOS.xlsx, got 'gblur'"):
        read_published("csiq", str(folder))


def test_tid2013_finds_names_in_either_case(images, rows):
    folder = images("reference_images/I01.BMP", "reference_images/i25.bmp")
    images("distorted_images/I01_01_1.bmp", "distorted_images/i25_24_5.bmp")
    (folder / "mos_with_names.txt").write_text("5.51429 i01_01_1.bmp\n3.2 I25_24_5.bmp\n")
    (folder / "mos_std.txt").write_text("0.13\n0.2\n")
    written, manifest = rows("tid2013")
    assert written == [
        {
            "path": "set/distorted_images/I01_01_1.bmp",
            "reference": "set/reference_images/I01.BMP",
            "mos": "5.51429",
            "group": "I01",
            "type": "gaussian_noise",
            "level": "1",
            "std": "0.13",
        },
        {
            "path": "set/distorted_images/i25_24_5.bmp",
            "reference": "set/reference_images/i25.bmp",
            "mos": "3.2",
            "group": "I25",
            "type": "sparse_sampling",
            "level": "5",
            "std": "0.2",
        },
    ]
    assert manifest.higher_is_better
    (folder / "mos_std.txt").write_text("0.13\n")
    with pytest.raises(ValueError, match="Expected 2 lines in .*mos_std.txt, got 1"):
        read_published("tid2013", str(folder))
    (folder / "mos_with_names.txt").write_text("5.5 I01_25_1.bmp\n")
    with pytest.raises(ValueError, match="Expected lines like .*mos_with_names.txt, got '5.5 I01_25_1.bmp'"):
        read_published("tid2013", str(folder))


def test_kadid10k_calls_a_mos_dmos(images, rows):
    folder = images("images/I01.png", "images/I81.png", "images/I01_01_01.png", "images/I81_25_05.png")
    (folder / "dmos.csv").write_text(
        "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\nI81_25_05.png,I81.png,1.7,0.8\n"
    )
    written, manifest = rows("kadid10k")
    assert written == [
        {
            "path": "set/images/I01_01_01.png",
            "reference": "set/images/I01.png",
            "mos": "4.57",
            "group": "I01",
            "type": "gaussian_blur",
            "level": "1",
            "std": "0.496",
        },
        {
            "path": "set/images/I81_25_05.png",
            "reference": "set/images/I81.png",
            "mos": "1.7",
            "group": "I81",
            "type": "change_contrast",
            "level": "5",
            "std": "0.8",
        },
    ]
    assert manifest.higher_is_better
    assert tuple(kind.name for kind in NATURAL) == layouts.KADID_TYPES  # the bank has the same 25


def clive(images, mos=(60.0, 70.5, 3.4)):
    folder = images("Images/trainingImages/t1.bmp", "Images/3.bmp", "Images/10.JPG")
    (folder / "Data").mkdir()
    savemat(
        folder / "Data" / "AllImages_release.mat", {"AllImages_release": cells("t1.bmp", "3.bmp", "10.JPG")[:, None]}
    )
    savemat(folder / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array([mos])})
    savemat(folder / "Data" / "AllStdDev_release.mat", {"AllStdDev_release": np.array([[1.0, 20.25, 30.0]])})
    return folder


def test_clive_leaves_out_the_images_that_trained_the_raters(images, rows):
    clive(images)
    written, manifest = rows("clive")
    assert written == [
        {"path": "set/Images/3.bmp", "mos": "70.5", "std": "20.25"},
        {"path": "set/Images/10.JPG", "mos": "3.4", "std": "30.0"},
    ]
    assert manifest.higher_is_better and manifest.groups.tolist() == [0, 1]
    written, _ = rows("clive", everything=True)
    training = {"path": "set/Images/trainingImages/t1.bmp", "mos": "60.0", "type": "training", "std": "1.0"}
    assert written[0] == training and [row["type"] for row in written] == ["training", "", ""]


def test_koniq10k_takes_the_mos_of_100_and_the_official_split(images, rows):
    folder = images("512x384/1.jpg", "512x384/2.jpg", "512x384/3.jpg")
    (folder / "koniq10k_scores_and_distributions.csv").write_text(
        '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"\n'
        '"1.jpg",0,0,25,73,7,105,3.83,0.53,77.4\n"2.jpg",0,3,45,47,1,96,3.5,0.58,68.7\n'
        '"3.jpg",0,3,45,47,1,96,3.5,0.58,67.7\n'
    )
    written, manifest = rows("koniq10k")
    assert written[0] == {"path": "set/512x384/1.jpg", "mos": "77.4", "std": "0.53"} and manifest.splits is None
    assert "no split: koniq10k_distributions_sets.csv" in read_published("koniq10k", str(folder)).notes[0]
    (folder / "koniq10k_distributions_sets.csv").write_text(
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n1.jpg,0,0,0.2,0.7,0.1,105,77.38,0.527,training\n"
        "2.jpg,0,0,0.5,0.5,0,96,68.73,0.58,validation\n3.jpg,0,0,0.5,0.5,0,96,67.7,0.5,test\n"
    )
    images("1024x768/1.jpg", "1024x768/2.jpg", "1024x768/3.jpg")
    written, manifest = rows("koniq10k")
    assert written[1] == {"path": "set/1024x768/2.jpg", "mos": "68.73", "split": "val", "std": "0.58"}
    assert manifest.splits == ["train", "val", "test"] and manifest.higher_is_better
    (folder / "koniq10k_distributions_sets.csv").write_text("image_name,MOS,SD,set\n1.jpg,77.38,0.5,training2\n")
    with pytest.raises(ValueError, match="Expected training, validation or test as set in .*sets.csv, got 'training2'"):
        read_published("koniq10k", str(folder))


def test_flive_takes_the_split_of_the_paper(images, rows):
    folder = images(
        "database/voc_emotic_ava/A__1.jpg", "database/blur_dataset/m2.jpg", "database/voc_emotic_ava/A__3.jpg"
    )
    (folder / "labels_image.csv").write_text(
        "name,mos\nvoc_emotic_ava/A__1.jpg,75.4\nblur_dataset/m2.jpg,0.0\nvoc_emotic_ava/A__3.jpg,60\n"
    )
    written, manifest = rows("flive")
    assert written[1] == {"path": "set/database/blur_dataset/m2.jpg", "mos": "0.0"} and manifest.splits is None
    (folder / "database" / "labels640.csv").write_text("name_image,mos_image\nvoc_emotic_ava/A__3.jpg,60\n")
    (folder / "database" / "labels=640_padded.csv").write_text(
        "name_image,is_valid\nvoc_emotic_ava/A__1.jpg,False\nblur_dataset/m2.jpg,True\n"
    )
    assert rows("flive")[1].splits == ["train", "val", "test"]


def test_spaq_reads_the_sheet(images, rows):
    folder = images("TestImage/00001.jpg", "TestImage/00002.jpg")
    book = openpyxl.Workbook()
    for line in (["Image name", "MOS", "Brightness"], ["00001.jpg", 42.75, 50], ["00002.jpg", 30, 40]):
        book.active.append(line)
    (folder / "Annotations").mkdir()
    book.save(folder / "Annotations" / "MOS and Image attribute scores.xlsx")
    written, manifest = rows("spaq")
    assert written == [
        {"path": "set/TestImage/00001.jpg", "mos": "42.75"},
        {"path": "set/TestImage/00002.jpg", "mos": "30"},
    ]
    assert manifest.higher_is_better


def test_pipal_finds_images_in_its_four_folders(images, rows):
    folder = images("Train_Ref/A0001.bmp", "Distortion_1/A0001_00_00.bmp", "Distortion_3/A0001_04_11.bmp")
    (folder / "Train_Label").mkdir()
    (folder / "Train_Label" / "A0001.txt").write_text("A0001_00_00.bmp,1443.05\nA0001_04_11.bmp,1560.5\n\n")
    written, manifest = rows("pipal")
    one = {"reference": "set/Train_Ref/A0001.bmp", "group": "A0001"}
    assert written == [
        one | {"path": "set/Distortion_1/A0001_00_00.bmp", "mos": "1443.05", "type": "00"},
        one | {"path": "set/Distortion_3/A0001_04_11.bmp", "mos": "1560.5", "type": "04"},
    ]
    assert manifest.higher_is_better and manifest.splits is None


def biq2021(images, test="ss02 (7).jpg,0.0043,,\n"):
    folder = images("Images/ss01 (1).jpg", "Images/ss02 (7).jpg")
    (folder / "Train (Images and MOS).csv").write_text("Image Name,MOS,,\nss01 (1).jpg,0.4779,,\n")
    (folder / "Test (Images and MOS).csv").write_text(f"Image Name,MOS,,\n{test}")
    return folder


def test_biq2021_has_a_file_per_split(images, rows):
    biq2021(images)
    written, manifest = rows("biq2021")
    assert written == [
        {"path": "set/Images/ss01 (1).jpg", "mos": "0.4779", "split": "train"},
        {"path": "set/Images/ss02 (7).jpg", "mos": "0.0043", "split": "test"},
    ]
    assert manifest.higher_is_better


def test_ldctiqac_groups_by_patient_where_names_say_it(images, rows):
    folder = images("image/0000.tif", "image/0001.tif")
    (folder / "train.json").write_text(json.dumps({"0000.tif": 2.8, "0001.tif": 0}))
    written, manifest = rows("ldctiqac")
    assert written == [{"path": "set/image/0000.tif", "mos": "2.8"}, {"path": "set/image/0001.tif", "mos": "0"}]
    assert manifest.higher_is_better and "no group" in read_published("ldctiqac", str(folder)).notes[0]
    images("image/L096_402_1_1.tif", "image/L096_403_1_2.tif", "image/L107_12_1_1.tif")
    (folder / "train.json").write_text(json.dumps({"L096_402_1_1": 2.8, "L096_403_1_2": 1.2, "L107_12_1_1": 4.0}))
    written, manifest = rows("ldctiqac")
    assert written[0] == {"path": "set/image/L096_402_1_1.tif", "mos": "2.8", "group": "L096"}
    assert manifest.groups.tolist() == [0, 0, 1]


def bapps(images, **judges):
    for place, judge in {"2afc/train/cnn": 0.5, "2afc/val/color": 1.0, **judges}.items():
        names = ("p0", "p1") if "jnd" in place else ("ref", "p0", "p1")
        folder = images(*(f"{place}/{name}/000000.png" for name in names))
        shares = folder / place / ("same" if "jnd" in place else "judge")
        shares.mkdir()
        np.save(shares / "000000.npy", np.array([judge], dtype=np.float32))
    return folder


def test_bapps_triplets(images, rows):
    bapps(images)
    train, val = rows("bapps-2afc")[0]
    assert train == {
        "reference": "set/2afc/train/cnn/ref/000000.png",
        "p0": "set/2afc/train/cnn/p0/000000.png",
        "p1": "set/2afc/train/cnn/p1/000000.png",
        "judge": "0.5",
        "group": "train/cnn/000000",
        "split": "train",
        "subset": "cnn",
    }
    assert (val["judge"], val["split"], val["subset"]) == ("1.0", "val", "color")


def test_bapps_pairs(images, rows):
    bapps(images, **{"jnd/val/traditional": 0.25})
    assert rows("bapps-jnd")[0] == [
        {
            "p0": "set/jnd/val/traditional/p0/000000.png",
            "p1": "set/jnd/val/traditional/p1/000000.png",
            "same": "0.25",
            "group": "traditional/000000",
            "subset": "traditional",
        }
    ]


def test_bapps_shares_that_are_none(images):
    folder = bapps(images, **{"2afc/val/cnn": np.nan, "2afc/val/deblur": -1})
    found = read_published("bapps-2afc", str(folder))
    assert [row["subset"] for row in found.rows] == ["cnn", "color"]
    assert found.faults == [
        "2afc/val/cnn/p0/000000.png: judge is nan",
        "2afc/val/deblur/p0/000000.png: judge is -1.0",
    ]
    path = folder / "2afc" / "val" / "cnn" / "judge" / "000000.npy"
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Expected an array in .*val/cnn/judge/000000.npy"):
        read_published("bapps-2afc", str(folder))
    np.save(path, np.ones(2))
    with pytest.raises(ValueError, match=r"Expected one number in .*000000.npy, got float64 \(2,\)"):
        read_published("bapps-2afc", str(folder))


def test_ratings_that_are_none_are_left_out_and_listed(images, tmp_path, capsys):
    biq2021(images, "ss02 (7).jpg,-1,,\nss01 (1).jpg,nan,,\n")
    output = tmp_path / "manifest.csv"
    assert main(["manifest", "biq2021", str(tmp_path / "set"), "-o", str(output)]) == 1
    assert len(read_manifest(str(output))) == 1
    error = capsys.readouterr().err.splitlines()
    assert error == [
        "warning: 3 rows, but 12000 were published",
        "left out: Images/ss02 (7).jpg: mos -1 is outside of 0 to 1",
        "left out: Images/ss01 (1).jpg: mos is nan",
    ]


def test_a_matlab_nan_is_left_out(images):
    found = read_published("clive", str(clive(images, mos=(50, np.nan, 20))))
    assert [row["mos"] for row in found.rows] == ["20.0"] and found.faults == ["Images/3.bmp: mos is nan"]


def test_without_any_usable_rating_nothing_is_written(images, tmp_path, capsys):
    clive(images, mos=(50, np.nan, np.nan))
    output = tmp_path / "manifest.csv"
    assert main(["manifest", "clive", str(tmp_path / "set"), "-o", str(output)]) == 2
    assert "Expected a usable rating in CLIVE" in capsys.readouterr().err and not output.exists()


def test_missing_images_are_named(images, rows):
    folder = biq2021(images, "".join(f"ss03 ({i}).jpg,0.5,,\n" for i in range(8)))
    (folder / "Images" / "ss01 (1).jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"Expected 9 images of BIQ2021 in .*set, got no Images/ss01 \(1\).jpg, "
    ) as e:
        read_published("biq2021", str(folder))
    assert "ss03 (3).jpg and 4 more. Unpack the whole set." in str(e.value)


def test_every_set_refuses_a_wrong_folder(tmp_path):
    for name in SETS:
        with pytest.raises(FileNotFoundError, match=f"Expected .* in {tmp_path}, got no .*. Give the folder"):
            read_published(name, str(tmp_path))
        with pytest.raises(FileNotFoundError, match="Expected the folder of .*none, which is none"):
            read_published(name, str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="in .*, got no csiq.DMOS.xlsx, src_imgs, dst_imgs"):
        read_published("csiq", str(tmp_path))


@pytest.mark.parametrize(
    "name, file, content, words",
    [
        (
            "kadid10k",
            "dmos.csv",
            b"image,mos\n",
            "Expected columns dist_img, .*dmos.csv, got no dist_img, ref_img, dmos, var",
        ),
        ("kadid10k", "dmos.csv", b"dist_img,ref_img,dmos,var\n", "Expected rated images of KADID-10k in .*, got none"),
        ("kadid10k", "dmos.csv", "dist_img,ä".encode("latin-1"), "Expected a CSV file in UTF-8, got .*dmos.csv"),
        ("clive", "Data/AllMOS_release.mat", b"no matlab " * 50, "Expected a MATLAB file .*AllMOS_release.mat"),
        ("csiq", "csiq.DMOS.xlsx", b"no excel", "Expected an Excel file with all_by_image, got .*csiq.DMOS.xlsx"),
        ("ldctiqac", "train.json", b"{", "Expected a JSON file, got .*train.json"),
        ("ldctiqac", "train.json", b"[1]", "Expected names with scores in .*train.json, got list"),
        ("ldctiqac", "train.json", b"[" * 100_000, "Expected a JSON file, got .*train.json"),
    ],
)
def test_files_that_are_something_else(images, name, file, content, words):
    folder = {"clive": clive, "csiq": csiq}.get(name, lambda images: images("images/a.png", "image/a.tif"))(images)
    (folder / "image").mkdir(exist_ok=True)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_published(name, str(folder))


@pytest.mark.parametrize("compressed", [False, True])
def test_half_a_matlab_file(images, compressed):
    path = clive(images) / "Data" / "AllMOS_release.mat"
    savemat(path, {"AllMOS_release": np.arange(50.0) / 7}, do_compression=compressed)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"Expected (a MATLAB file|variable) .*AllMOS_release.mat"):
            tables.vector(path, "AllMOS_release")


def test_a_damaged_excel_file(images):
    path = csiq(images) / "csiq.DMOS.xlsx"
    content = path.read_bytes()
    found = 0
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
        try:
            tables.sheet(path, "all_by_image", ("image", "dmos"))
        except ValueError as error:
            assert "Expected " in str(error) and "csiq.DMOS.xlsx" in str(error)
            found += 1
    assert found > 10


def test_arrays_of_other_lengths_and_names(images):
    folder = clive(images, mos=(1.0, 2.0))
    with pytest.raises(ValueError, match="Expected 3 AllMOS_release in .*Data, got 2"):
        read_published("clive", str(folder))
    savemat(folder / "Data" / "AllMOS_release.mat", {"mos": np.ones(3)})
    with pytest.raises(ValueError, match="Expected variable AllMOS_release in .*AllMOS_release.mat, got none"):
        read_published("clive", str(folder))
    savemat(folder / "Data" / "AllMOS_release.mat", {"AllMOS_release": cells("a", "b", "c")})
    with pytest.raises(ValueError, match="Expected numbers as AllMOS_release"):
        read_published("clive", str(folder))


def test_the_verb_writes_and_sums_up(images, tmp_path, capsys):
    biq2021(images)
    folder = str(tmp_path / "set")
    assert main(["manifest", "biq2021", folder]) == 0  # writes nothing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "BIQ2021 (Ahmed and Asif, J. Electronic Imaging 2022): 2 rows.",
        "Ratings: mos, higher is better; 0.0043 to 0.4779 (scale 0 to 1).",
        "References: none.",
        "Groups: none.",
        "Splits: train: 1, test: 1.",
    ]
    assert captured.err == "warning: 2 rows, but 12000 were published\n"
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / "elsewhere" / "m.csv"
    assert main(["manifest", "biq2021", folder, "-o", str(output)]) == 0
    assert read_manifest(str(output)).columns["path"][0] == f"{folder}/Images/ss01 (1).jpg"  # not below the manifest
    assert [path.name for path in output.parent.iterdir()] == ["m.csv"]


def test_the_verb_refuses_other_names_before_it_reads(tmp_path, capsys):
    assert main(["manifest", "kodak", str(tmp_path)]) == 2
    assert "error: Expected one of live, csiq, tid2013, " in capsys.readouterr().err
    assert main(["manifest", "live", str(tmp_path), "-o", str(tmp_path / "m.txt")]) == 2
    assert "Expected a name that ends in .csv" in capsys.readouterr().err
    assert main(["manifest", "live", str(tmp_path), "-o", str(tmp_path / "no" / "m.csv")]) == 2
    assert "Expected a file in a folder that can be written to" in capsys.readouterr().err


def test_help_says_where_each_set_is_from(capsys):
    with pytest.raises(SystemExit):
        main(["manifest", "--help"])
    text = capsys.readouterr().out
    for name, published in SETS.items():
        assert f"  {name:<11} {published.title}; {published.paper}\n" in text and published.source in text


def test_the_published_number_of_rows_gives_no_warning(images, monkeypatch):
    folder = str(biq2021(images))
    monkeypatch.setitem(SETS, "biq2021", SETS["biq2021"]._replace(rows=2))
    assert read_published("biq2021", folder).notes == []
    monkeypatch.setitem(SETS, "biq2021", SETS["biq2021"]._replace(rows=5, tolerance=3))
    assert read_published("biq2021", folder).notes == []
    monkeypatch.setitem(SETS, "biq2021", SETS["biq2021"]._replace(rows=6))
    found = read_published("biq2021", folder)
    assert found.notes == ["warning: 2 rows, but about 6 were published"]
    assert format_published(found).startswith("BIQ2021")
