"""The command line: LightningCLI for training, and one function per other verb."""

import argparse
import errno
import io
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from csrtrain.config_files import check_config_file
from csrtrain.files import as_text, is_address, shown

if TYPE_CHECKING:
    import pandas as pd

    from csrtrain import report

_USAGE = """usage: csrtrain VERB ...

  fit         train:               csrtrain fit -c configs/medical_simclr.yaml --data.root DIR
  validate    measure a checkpoint on the labelled images of a config
  export      run -> bundle:       csrtrain export runs/medical_simclr -o backbone.safetensors
              distance:            csrtrain export backbone.safetensors -o distance.safetensors --distance
  score       images -> scores:    csrtrain score metric.safetensors DIR -o scores.csv --heatmap maps/
              -> distances:        csrtrain score distance.safetensors DIR --reference DIR -o distances.csv
  evaluate    beside people:       csrtrain evaluate metric.safetensors --manifest ratings.csv -o results/
  features    images -> numbers:   csrtrain features backbone.safetensors DIR -o features.npz
  check-data  look at images:      csrtrain check-data DIR
              or at ratings:       csrtrain check-data ratings.csv
  manifest    a published rating set -> ratings.csv:   csrtrain manifest koniq10k DIR -o koniq10k.csv
  preview     look at the views:   csrtrain preview -c configs/medical_simclr.yaml -o views.png
              or distortions:      csrtrain preview --distortions IMAGE --bank mri -o distortions.png
  report      runs -> a page:      csrtrain report runs/medical_simclr -o report.html

csrtrain VERB --help says more. Exit codes: 0 all done, 1 some inputs failed and are listed, 2 wrong use.
"""

# What a class_path in a config may name. "torch" as a whole would let a callback call torch.hub.load.
ALLOWED_IMPORTS = ["csrtrain", "lightning.pytorch", "torch.optim", "torch.nn", "torchmetrics", "kornia.augmentation"]


def config_path(name: str) -> Path:
    """A config by path, or by its name among those that ship with csrtrain (`medical_simclr`, `configs/x.yaml`).

    Raises:
        ValueError: there is none, and the message lists the names; or it is none that should be read, see
            `csrtrain.config_files`.
    """
    if os.path.exists(name) or is_address(name):
        check_config_file(Path(name))
        return Path(name)
    shipped = Path(str(files("csrtrain"))) / "configs"
    if not shipped.is_dir():  # an editable installation
        shipped = Path(__file__).parents[1] / "configs"
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    if stem and "/" not in stem and (shipped / f"{stem}.yaml").is_file():
        return shipped / f"{stem}.yaml"
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise ValueError(f"Expected a config file, got {shown(name)}, which does not exist. Shipped configs: {names}.")


def _resolve_configs(args: list[str]) -> list[str]:
    """Each -c / --config as --config=PATH, with the path that its value stands for."""
    resolved, rest = [], list(args)
    while rest:
        arg = rest.pop(0)
        if arg in ("-c", "--config") and rest:
            arg = f"--config={config_path(rest.pop(0))}"
        elif arg.startswith("--config="):
            arg = f"--config={config_path(arg.removeprefix('--config='))}"
        elif arg.startswith("-c") and len(arg) > 2:
            arg = f"--config={config_path(arg[2:])}"
        resolved.append(arg)
    return resolved


def _train(args: list[str]) -> int:
    """fit, validate, test, predict."""
    from csrtrain.training_cli import TrainingCLI

    TrainingCLI(args=_resolve_configs(args))
    return 0


def _export(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="csrtrain export",
        description="Make a bundle, the one file to keep and share, from a run or a checkpoint.",
        epilog="examples: csrtrain export runs/medical_simclr -o backbone.safetensors   "
        "csrtrain export backbone.safetensors -o distance.safetensors --distance",
    )
    parser.add_argument("run", type=Path, help="run directory or checkpoint file; with --distance also a backbone")
    parser.add_argument("-o", "--output", type=Path, required=True, help="bundle to write (.safetensors)")
    parser.add_argument("--onnx", type=Path, help="write a metric as ONNX too (.onnx), for images of 64 px to 1 MP")
    parser.add_argument(
        "--distance",
        nargs="*",
        type=int,
        metavar="STAGE",
        help="make a full-reference distance of a backbone, without ratings: all weights 1, of these stages of its "
        "feature maps, counted from 0; default: all",
    )
    parser.add_argument("--scales", type=float, nargs="+", help="with --distance, of the images; default: 1 alone")
    options = parser.parse_args(args)
    if options.distance is not None and options.onnx is not None:
        raise ValueError("Expected --onnx of a no-reference metric, got it with --distance. Leave one out.")
    if options.distance is None and options.scales is not None:
        raise ValueError("Expected --scales with --distance, got it without. Add --distance, or leave --scales out.")

    from csrtrain import bundle, onnx
    from csrtrain.runs import checkpoints

    if options.onnx is not None:
        onnx.check(options.onnx)
    checkpoint = checkpoints.newest(options.run) if options.run.is_dir() else options.run
    if checkpoint is None:
        raise ValueError(f"Expected a run with a checkpoint, got {options.run} without one. Train it first.")
    if options.distance is not None:
        made = bundle.export_distance(checkpoint, options.output, options.distance or None, options.scales or (1.0,))
        stages, scales = made.features[0]["stages"], made.features[0]["scales"]
        print(f"Wrote {options.output}: distance of stages {stages} at scales {scales} of {checkpoint}.")
        return 0
    bundle.export_checkpoint(checkpoint, options.output)
    print(f"Wrote {options.output} from {checkpoint}.")
    if options.onnx is not None:
        difference = onnx.export_onnx(bundle.load_metric(options.output), options.onnx)
        print(f"Wrote {options.onnx}: scores differ by at most {difference:.1g} of 100 in onnxruntime.")
    return 0


def _check_data(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="csrtrain check-data",
        description="Read every image of a folder, list, CSV column or manifest of ratings; list what is broken, "
        "double or nearly empty, and of a manifest which rows are wrong and what splits share.",
        epilog="examples: csrtrain check-data images/   csrtrain check-data ratings.csv   Exit code 1 when a file is "
        "broken or a row wrong.",
    )
    parser.add_argument("root", help="folder, text file with one path per line, CSV file, or CSV file with mos or dmos")
    parser.add_argument("--column", help="column of paths in a CSV file (of a manifest: path)")
    parser.add_argument("--range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of the ratings of a manifest")
    parser.add_argument("--min-size", type=int, default=64, help="images with a shorter side are listed (pixels)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes")
    options = parser.parse_args(args)

    from csrtrain.data.check import check_data, format_report
    from csrtrain.data.check_manifest import check_manifest, format_manifest_report
    from csrtrain.data.manifest import is_manifest

    if is_manifest(options.root):
        found = check_manifest(
            options.root,
            options.column or "path",
            tuple(options.range) if options.range else None,
            options.min_size,
            options.workers,
        )
        print(format_manifest_report(found) + "\n\n" + format_report(found.images))
        return 0 if found.is_sound else 1
    report = check_data(options.root, column=options.column, min_size=options.min_size, workers=options.workers)
    print(format_report(report))
    if Path(options.root).suffix.lower() == ".csv":
        print("No column mos or dmos: images were looked at, ratings and splits were not.")
    return 1 if report.broken else 0


def _manifest(args: list[str]) -> int:
    from csrtrain.data import published

    known = "\n".join(
        f"  {name:<11} {known.title}; {known.paper}\n{'':<14}{known.source}" for name, known in published.SETS.items()
    )
    parser = argparse.ArgumentParser(
        prog="csrtrain manifest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make a manifest of a published rating set from the folder that it unpacks to: path, reference,\n"
        "mos (higher is better) or dmos (lower is better), group, split, type, level, std, as far as the set has\n"
        "them; of BAPPS reference, p0, p1, judge or p0, p1, same. Nothing is downloaded.",
        epilog=f"names, and where to get the sets:\n{known}\n\n"
        "examples: csrtrain manifest koniq10k data/koniq10k -o koniq10k.csv   csrtrain manifest live data/live\n"
        "Exit code 1 when a row has no usable rating; it is listed and left out, and the others are written.",
    )
    parser.add_argument("name", metavar="NAME", help="of the set, see below")
    parser.add_argument("folder", metavar="DIR", help="what the set unpacks to")
    parser.add_argument("-o", "--output", help="manifest to write (.csv); without it the summary is all")
    parser.add_argument("--all", action="store_true", help="keep rated images that belong to no protocol, see type")
    options = parser.parse_args(args)
    if options.output:
        published.check_output(options.output)

    found = published.read_published(options.name, options.folder, options.all)
    if options.output:
        published.write_published(found, options.output)
    print(published.format_published(found))
    if options.output:
        print(f"Wrote {options.output}.")
    for note in found.notes:
        print(note, file=sys.stderr)
    for fault in found.faults:
        print(f"left out: {fault}", file=sys.stderr)
    return 1 if found.faults else 0


def _preview(args: list[str]) -> int:
    from csrtrain import preview
    from csrtrain.augment.settings import Modality

    if any(arg.partition("=")[0] in ("-c", "--config") for arg in args):
        print(f"Wrote {preview.views(_resolve_configs(args))}.")
        return 0
    parser = argparse.ArgumentParser(
        prog="csrtrain preview",
        description="Draw the views of a config (-c CONFIG, and any option of fit), or every type and level of "
        "distortion on one image.",
        epilog="examples: csrtrain preview -c medical_simclr --data.root images/ -o views.png   "
        "csrtrain preview --distortions scan.dcm --bank mri -o distortions.png",
    )
    parser.add_argument("--distortions", metavar="IMAGE", required=True, help="the image to distort")
    parser.add_argument("--bank", default="natural", choices=get_args(Modality), help="default: natural")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="default: those of the image")
    parser.add_argument("-o", "--output", required=True, help="the PNG to write")
    options = parser.parse_args(args)
    print(f"Wrote {preview.distortions(options.distortions, options.bank, options.output, options.channels)}.")
    return 0


def _features(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="csrtrain features",
        description="Write the features of whole images from frozen backbones, at full and half scale, side by side.",
        epilog="examples: csrtrain features my_mri.safetensors scans/ -o features.npz   "
        "csrtrain features content.safetensors quality.safetensors ratings.csv -o features.npz   "
        "Exit code 1 when an image cannot be read; the others are written.",
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="bundles, then what to read: see images")
    parser.add_argument("images", help="folder, text file with one path per line, CSV file, or an image")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .npz file: paths, features, sizes")
    parser.add_argument("--column", default="path", help="column of paths in a CSV file; default: path")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.5], help="of the image; default: 1 0.5")
    parser.add_argument("--no-l2", action="store_true", help="keep the length of each representation")
    parser.add_argument("--stages", type=int, nargs="+", help="means of these feature maps, not the representation")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; default: a GPU where there is one")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that decode")
    parser.add_argument("--slice-axis", type=int, default=2, help="axis along which NIfTI volumes are cut")
    options = parser.parse_args(args)
    if options.output.suffix != ".npz":
        raise ValueError(f"Expected a name that ends in .npz, got {options.output}. Change the name.")
    _check_work(options)

    from csrtrain import score
    from csrtrain.data.index import addresses_of

    model = score.load_features(
        options.bundles, tuple(options.scales), not options.no_l2, options.stages and tuple(options.stages)
    )
    addresses = addresses_of(options.images, options.column, options.slice_axis)
    extracted = score.extract(
        model,
        addresses,
        device=options.device,
        bf16=options.bf16,
        batch_size=options.batch_size,
        workers=options.workers,
        window=score.window_of(options.bundles[0]),
        slice_axis=options.slice_axis,
    )
    score.save_features(options.output, extracted, model)
    rows, width = extracted.features.shape
    print(f"Wrote {options.output}: {rows} images, {width} features.")
    for reason in extracted.broken.values():
        print(f"not read: {reason}", file=sys.stderr)
    return 1 if extracted.broken else 0


def _check_output(path: Path) -> None:
    """Refuse a file that could not be written when the work is done."""
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ValueError(f"Expected a file in a folder that can be written to, got {path}. Name another.")


def _check_work(options: argparse.Namespace) -> None:
    """Refuse an output that cannot be written, and impossible sizes, of what goes through a network."""
    _check_output(options.output)
    if options.batch_size < 1 or options.workers < 0:
        raise ValueError(
            f"Expected --batch-size >= 1, --workers >= 0, got {options.batch_size}, {options.workers}. Correct them."
        )


def _score(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="csrtrain score",
        description="Score images with a metric: 0 to 100, higher is better, each with a flag when the image is unlike "
        "those that the metric was fitted to; or compare them with references by a distance: 0 is identical, lower is "
        "closer. Volumes get a row per slice, and a table of volumes beside.",
        epilog="examples: csrtrain score metric.safetensors scans/ -o scores.csv --heatmap maps/   "
        "csrtrain score metric.safetensors a.png b.dcm volume.nii.gz -o scores.parquet   "
        "csrtrain score distance.safetensors compressed/ --reference originals/ -o distances.csv   "
        "csrtrain score distance.safetensors pairs.csv -o distances.csv   "
        "Exit code 1 when an image cannot be read; it is listed with the reason, and the others are scored. Ctrl-C "
        "writes what was done beside, to NAME.partial.csv or .parquet.",
    )
    parser.add_argument("metric", help="bundle of a metric or a distance")
    parser.add_argument(
        "paths",
        nargs="+",
        help="images, folders, text files with one path per line, CSV files; of a distance also CSV files with columns "
        "path and reference",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="table to write (.csv or .parquet)")
    parser.add_argument(
        "--reference",
        metavar="PATH",
        help="of a distance: the image that all are compared with, or a folder that has one for each, of the same "
        "relative path or of the same name but for the extension",
    )
    parser.add_argument("--heatmap", type=Path, help="folder for a picture and an array per image: where it is bad")
    parser.add_argument("--column", default="path", help="column of paths in a CSV file; default: path")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; default: a GPU where there is one")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that decode")
    parser.add_argument("--slice-axis", type=int, default=2, help="axis along which NIfTI volumes are cut")
    options = parser.parse_args(args)
    if options.output.suffix not in (".csv", ".parquet"):
        raise ValueError(f"Expected a name that ends in .csv or .parquet, got {options.output}. Change the name.")
    beside, partial = (options.output.with_suffix(f".{name}{options.output.suffix}") for name in ("volumes", "partial"))
    _check_work(options)
    _check_output(beside)
    _check_output(partial)
    for path in options.paths:
        if Path(path).resolve() in (options.output.resolve(), beside.resolve(), partial.resolve()):
            raise ValueError(f"Expected another file than what is scored for -o, got {path} for both. Name another.")

    from csrtrain import score

    table, summary = _compared(options) if _is_distance(options) else _scored(options)
    missing = int((table["error"] == score.INTERRUPTED).sum())
    if missing:
        if missing < len(table):  # beside, so that a whole table of an earlier call stays
            score.write_table(partial, table)
            print(f"Wrote {partial}: {summary}")
        print(f"interrupted: {missing} of {len(table)} rows were not reached, see their column error", file=sys.stderr)
        return 130
    score.write_table(options.output, table)
    volumes = score.volumes(table)
    for earlier in (beside, partial):
        earlier.unlink(missing_ok=True)
    if len(volumes):
        score.write_table(beside, volumes)
        print(f"Wrote {beside}: {len(volumes)} volumes.")
    print(f"Wrote {options.output}: {summary}")
    wrong = table["error"][table["error"] != ""]
    for reason in wrong:
        print(f"not scored: {reason}", file=sys.stderr)
    return 1 if len(wrong) else 0


def _is_distance(options: argparse.Namespace) -> bool:
    """Whether the bundle compares images with references, as `--reference` asks for."""
    from csrtrain import headers

    kind = headers.read_header(options.metric).kind
    if kind == "no_reference" and options.reference is not None:
        raise ValueError(
            f"Expected a full-reference distance for --reference, got a no-reference metric in {options.metric}. Leave "
            "--reference out, or make a distance of a backbone: csrtrain export BACKBONE -o DISTANCE --distance."
        )
    if kind == "backbone":
        raise ValueError(
            f"Expected the bundle of a no-reference metric or a distance, got a backbone in {options.metric}. Compare "
            f"with references: csrtrain export {options.metric} -o DISTANCE --distance; or fit a head to ratings: "
            "csrtrain fit -c nr_linear."
        )
    return kind == "full_reference"


def _scored(options: argparse.Namespace) -> "tuple[pd.DataFrame, str]":
    """Scores of images, and a summary in words."""
    import torch

    from csrtrain import bundle, score
    from csrtrain.data.index import addresses_of

    metric = bundle.load_metric(options.metric)
    addresses = [a for path in options.paths for a in addresses_of(path, options.column, options.slice_axis)]
    _check_heatmap_folder(options)
    if options.heatmap is not None:
        metric.heatmap(torch.zeros(1, metric.features.channels, 64, 64))  # refused before the work if it has none
    try:
        table = score.score_images(
            metric,
            addresses,
            device=options.device,
            bf16=options.bf16,
            batch_size=options.batch_size,
            workers=options.workers,
            slice_axis=options.slice_axis,
            heatmaps=options.heatmap,
        )
    except score.Interrupted as stopped:
        table = stopped.table
    good = table[table["error"] == ""]
    return table, (
        f"{len(good)} images scored"
        + (f", median {good['score'].median():.1f} of 0 to 100 (higher is better)" if len(good) else "")
        + f"; {int(good['out_of_domain'].sum())} unlike the images that the metric was fitted to."
    )


def _compared(options: argparse.Namespace) -> "tuple[pd.DataFrame, str]":
    """Distances of images to their references, and a summary in words."""
    import pandas as pd

    from csrtrain import bundle, score
    from csrtrain.data.pairs import pairs_of
    from csrtrain.models.difference import DifferenceMetric

    metric = bundle.load_distance(options.metric)
    if options.heatmap is not None and isinstance(metric, DifferenceMetric):
        raise ValueError(score.NO_MAPS)
    _check_heatmap_folder(options)
    pairs, refused = pairs_of(options.paths, options.reference, options.column, options.slice_axis)
    fitting = [i for i in range(len(pairs)) if i not in refused]
    try:
        found = score.score_pairs(
            metric,
            [pairs[i] for i in fitting],
            device=options.device,
            bf16=options.bf16,
            batch_size=options.batch_size,
            workers=options.workers,
            slice_axis=options.slice_axis,
            heatmaps=options.heatmap,
        )
    except score.Interrupted as stopped:
        found = stopped.table
    table = pd.DataFrame([tuple(map(as_text, pair)) for pair in pairs], columns=["path", "reference"])
    for column in ("distance", "empty_slice"):
        table[column] = found[column].set_axis(fitting)  # by row; nothing elsewhere
    errors = {**refused, **dict(zip(fitting, found["error"], strict=True))}
    table["error"] = [as_text(errors[row]) for row in range(len(pairs))]
    good = table[table["error"] == ""]
    closest = (
        f", median distance {good['distance'].median():.4g} (0 is identical, lower is closer)" if len(good) else ""
    )
    return table, (
        f"{len(good)} images compared with their references{closest}; {int((good['distance'] == 0).sum())} identical."
    )


def _check_heatmap_folder(options: argparse.Namespace) -> None:
    """Refuse a folder for heat-maps among the images, or where nothing can be written."""
    if options.heatmap is None:
        return
    if options.heatmap.exists() and not options.heatmap.is_dir():
        raise ValueError(f"Expected a folder for heat-maps, got the file {options.heatmap}. Name another.")
    named = [*options.paths, *([options.reference] if options.reference is not None else [])]
    inside = [path for path in named if options.heatmap.resolve().is_relative_to(Path(path).resolve())]
    if inside:
        raise ValueError(
            f"Expected a folder for heat-maps outside of {inside[0]}, got {options.heatmap}. The next call would "
            "score them."
        )
    _check_writable(options.heatmap)


def _check_writable(folder: Path) -> None:
    """Refuse a folder that is not there yet and cannot be made, or that cannot be written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"Expected a folder that can be written to for {folder}, got {existing}. Name another.")


def _evaluate(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="csrtrain evaluate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Say how well bundles agree with people, beside controls, with 95 % intervals.\n"
        "A backbone gets a ridge head in every split, a fitted metric or a distance is judged as it is.\n"
        "Writes results.json, table.csv, report.md and plots.",
        epilog="""protocols:
  splits   10 random splits by reference and group, 80/20, medians
  native   the column split of the manifest: fit on train, judge on test
  whole    nothing is fitted: judge all rows
  cross    several manifests: fit on each, judge on each other
default: cross for several manifests; where a head has to be fitted native, or splits without a column split; else whole

examples:
  csrtrain evaluate my_mri.safetensors --manifest ratings.csv -o results/
  csrtrain evaluate a.safetensors b.safetensors --manifest koniq.csv --protocol native -o results/
  csrtrain evaluate a.safetensors --manifest kadid.csv --manifest tid2013.csv -o results/
  csrtrain evaluate distance.safetensors --manifest triplets.csv -o results/
  csrtrain evaluate distance.safetensors --manifest bapps.csv --size 64 -o results/

manifests, by their columns (paths are absolute or relative to the file):
  ratings  path, mos or dmos; and if wanted reference, group, split, type, level, std
  2AFC     reference, p0, p1, judge (share who chose p1); and if wanted group, split, subset
  JND      p0, p1, same (share who saw no difference); and if wanted group, split, subset

Exit code 1 when an image cannot be read: it is listed, and the others are evaluated.""",
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="backbones, metrics, distances")
    parser.add_argument("--manifest", action="append", required=True, help="CSV file of ratings; several for cross")
    parser.add_argument("--protocol", help="splits, native, whole or cross")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--no-controls", action="store_true", help="leave the controls out")
    parser.add_argument("--seed", type=int, default=0, help="of splits, folds and bootstrap samples; default: 0")
    parser.add_argument("--size", type=int, help="of choices: resize images to a square, pixels; LPIPS: 64")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; default: a GPU where there is one")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that decode")
    parser.add_argument("--slice-axis", type=int, default=2, help="axis along which NIfTI volumes are cut")
    options = parser.parse_args(args)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"Expected a folder to write into, got the file {options.output}. Name another.")
    if options.batch_size < 1 or options.workers < 0 or options.seed < 0:
        raise ValueError(
            f"Expected --batch-size >= 1, --workers >= 0 and --seed >= 0, got {options.batch_size}, {options.workers} "
            f"and {options.seed}. Correct them."
        )
    if options.size is not None and options.size < 16:
        raise ValueError(f"Expected --size >= 16 pixels, got {options.size}. Correct it.")
    _check_writable(options.output)

    from csrtrain import evaluate
    from csrtrain.evaluate.methods import Reading

    reading = Reading(options.device, options.bf16, options.batch_size, options.workers, options.slice_axis)
    results = evaluate.evaluate(
        options.bundles,
        options.manifest,
        options.protocol,
        reading,
        not options.no_controls,
        options.seed,
        options.size,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    files = evaluate.write(options.output, results)
    print((options.output / "report.md").read_text())
    print(f"Wrote {', '.join(path.name for path in files)} into {options.output}.")
    for one in results["broken"]:
        print(f"not evaluated: {one['manifest']}, line {one['line']}: {one['reason']}", file=sys.stderr)
    return 1 if results["broken"] else 0


def _report(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="csrtrain report",
        description="Write one HTML page about runs: what came out in words, curves, collapse monitors, agreement with "
        "ratings beside controls, environment, config. It is one file, asks for nothing outside, and names no path.",
        epilog="examples: csrtrain report runs/medical_simclr -o report.html   "
        "csrtrain report runs/seed0 runs/seed1 runs/nr_linear results/ -o report.html   "
        "Exit code 1 when --images cannot make the pictures of a run; the page is written without them.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, and folders that csrtrain evaluate wrote"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="page to write (.html)")
    parser.add_argument(
        "--images",
        action="store_true",
        help="put images of the training data on the page: views, and for CONTRIQUE distortions",
    )
    options = parser.parse_args(args)
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"Expected a name that ends in .html, got {options.output}. Change the name.")
    _check_output(options.output)

    from csrtrain import report

    found = report.read(options.runs)
    pictures, failed = _pictures_of_runs(found) if options.images else ({}, [])
    report.write(options.output, found, pictures)
    print(f"Wrote {options.output}: {', '.join(one.name for one in found)}.")
    for reason in failed:
        print(f"no images: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _pictures_of_runs(
    found: "list[report.Run | report.Evaluation]",
) -> "tuple[dict[str, list[report.Picture]], list[str]]":
    """Pictures of the runs that have views, by their name, and why some could not be made."""
    from csrtrain import preview, report

    pictures, failed = {}, []
    for one in found:
        if isinstance(one, report.Run) and not one.is_head:
            try:
                made = preview.of_run(one.folder / "config.yaml")
            except (ValueError, OSError) as error:
                failed.append(f"{one.name}: {error}")
            else:
                pictures[one.name] = [report.Picture(title, png) for title, png in made]
    return pictures, failed


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_VERBS = {
    "evaluate": _evaluate,
    "export": _export,
    "score": _score,
    "features": _features,
    "check-data": _check_data,
    "manifest": _manifest,
    "preview": _preview,
    "report": _report,
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `csrtrain` command.

    Returns:
        0 all done, 1 some inputs failed and are listed, 2 wrong use, 130 stopped by the keyboard (as a shell says). By
        SystemExit: 143 for a training that a signal has stopped, see `csrtrain.runs.signals`.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are no text, as stderr writes them
    if not args or args[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        import csrtrain

        print(f"csrtrain {csrtrain.__version__}")
        return 0
    try:
        if args[0] in ("fit", "validate", "test", "predict"):
            return _train(args)
        if args[0] in _VERBS:
            return _VERBS[args[0]](args[1:])
    except KeyboardInterrupt:
        more = "; the same command goes on from the newest checkpoint" if args[0] == "fit" else ""
        print(f"interrupted: what was not yet written is not there, no file is half-written{more}", file=sys.stderr)
        return 130
    except Exception as error:
        return _explain(error)
    print(f"error: Expected a verb, got {args[0]!r}.\n\n{_USAGE}", file=sys.stderr)
    return 2


def _explain(error: Exception) -> int:
    """Our own messages and file errors without a traceback; everything else is a fault and keeps it."""
    text = str(error)
    if "Original Traceback" in str(error):  # raised in a loader process: the message is the end of a traceback
        text = text.rstrip().splitlines()[-1].partition("Error: ")[2]
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f" for {error.filename}" if error.filename else ""
        text = f"Expected room on the disk{where}, got {error.strerror}. Make room, and give the same command again."
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.strerror}: {error.filename}"
    elif type(error).__name__ != "MisconfigurationException" and not ("Expected " in text and ", got " in text):
        text = ""
    if not text or os.environ.get("CSRTRAIN_TRACEBACK"):
        raise error
    if "Union subtypes" in text:  # jsonargparse wraps what a constructor says into a list of all it has tried
        lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
        text = next((line for line in lines if "Expected " in line and ", got " in line), text)
    print(f"error: {text}", file=sys.stderr)
    return 2
