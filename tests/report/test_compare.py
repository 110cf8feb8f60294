import statistics

import numpy as np
import pytest
import torch

from csrtrain.report import compare, folders
from csrtrain.runs.checkpoints import AtomicCheckpointIO


def runs(*paths):
    return [folders.read(path, path.name) for path in paths]


def test_runs_that_differ_in_their_seed_alone_are_a_group(make_run):
    a, b, c = make_run("a", seed=0), make_run("b", seed=1), make_run("c", seed=2)
    other = make_run("d", seed=0)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("temperature: 0.1", "temperature: 0.5"))
    longer = make_run("e", seed=3)
    (longer / "config.yaml").write_text(text.replace("max_epochs: 2", "max_epochs: 3"))
    none = make_run("f", **{"config.yaml": None})
    assert compare.seed_groups(runs(a, other, b, longer, c, none)) == [[0, 2, 4], [1], [3], [5]]


def test_mean_and_spread_as_the_library_has_them():
    values = [0.5, 0.25, 0.625, 0.75]
    assert compare.mean_and_spread([*values, np.nan]) == (
        f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g} (4)"
    )
    assert compare.mean_and_spread([0.5]) == "0.5 (1)"
    assert compare.mean_and_spread([np.nan]) == ""


def configured(folder, old, new):
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))


def test_the_best_is_marked_where_values_compare(make_run):
    text = "step,train/loss,val/knn_srcc\n0,1.0,0.1\n9,{},{}\n"
    a, b, c = (make_run(n, metrics=text.format(x, y)) for n, x, y in (("a", 1, 0.5), ("b", 2, 0.7), ("c", 3, 0.7)))
    assert compare.best(runs(a, b), "val/knn_srcc") == set()  # of one config
    for folder, temperature in ((b, 0.2), (c, 0.3)):
        configured(folder, "temperature: 0.1", f"temperature: {temperature}")
    assert compare.best(runs(a, b, c), "val/knn_srcc") == {1, 2}
    assert compare.best(runs(a, b, c), "train/loss") == set()
    assert compare.best(runs(b, c), "val/knn_srcc") == set()  # all alike
    assert compare.best(runs(a), "val/knn_srcc") == set()
    configured(c, "labels: null", "labels: other.csv")
    assert compare.best(runs(a, b, c), "val/knn_srcc") == set()


@pytest.mark.parametrize(("measure", "winner"), [("test/srcc", 1), ("test/rmse", 0)])
def test_heads_compare_on_the_same_ratings(make_run, measure, winner):
    def head(name, value, digest):
        folder = make_run(name, metrics=f"step,{measure}\n3,{value}\n")
        configured(folder, "resnet18", f"resnet_{name}")
        (folder / "checkpoints").mkdir()
        header = {"training": {"data": {"digest": digest}}, "w": torch.zeros(1)}
        AtomicCheckpointIO().save_checkpoint({"csrtrain": header}, folder / "checkpoints" / "step-000000001.ckpt")
        return folder

    a, b, c = head("a", 0.25, "x"), head("b", 0.5, "x"), head("c", 0.5, "y")
    assert compare.best(runs(a, b), measure) == {winner}
    assert compare.best(runs(a, c), measure) == set()


def test_measures_in_the_order_of_the_training(make_run):
    header = "step,test/srcc,val/knn_srcc,train/loss,held_out/srcc,held_out/srcc_low,epoch"
    run = runs(make_run(metrics=f"{header}\n0,1,1,1,1,1,0\n"))
    assert compare.measures(run) == ["train/loss", "val/knn_srcc", "held_out/srcc", "test/srcc"]


def test_keys_that_differ(make_run):
    found = runs(make_run("a", seed=0), make_run("b", seed=1))
    assert compare.different_keys(found) == ["seed_everything", "data.init_args.seed"]
