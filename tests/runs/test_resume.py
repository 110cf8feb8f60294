import copy

import pytest

from benchmarks import faults, resume


@pytest.mark.slow
@pytest.mark.ddp
def test_every_stop_of_the_pairwise_settings_ends_bit_identical(tmp_path):
    rows = resume.drill_all(resume.pairwise(), tmp_path)
    assert len(rows) == len(resume.pairwise())
    assert {row["ranks"] for row in rows} == {1, 2}
    assert all(row["stops"] >= 6 for row in rows)
    assert [row for row in rows if row["faults"]] == []


def test_the_drill_sees_a_lost_position(tmp_path, monkeypatch):
    """The comparison must fail when the data module replays the order of epoch 0."""
    forget = lambda self, state_dict: setattr(self, "batch", state_dict["batch"])  # noqa: E731
    monkeypatch.setattr(resume.UnlabeledData, "load_state_dict", forget)
    resume.make_images(tmp_path / "images")
    setting = resume.Setting(1, "simclr", 0, "max_epochs", 1, False, True)
    assert any(
        "other samples or views" in fault for fault in resume.drill(setting, tmp_path, tmp_path / "images")["faults"]
    )


@pytest.mark.parametrize("stops", [(3, 5), (2, 4)])
def test_resumed_from_the_ends_of_two_epochs_it_trains_as_many_steps(fit, interrupt, tmp_path, stops):
    """Lightning forgets to count the epoch that begins at a resume from the last step of one."""
    for step in stops:
        with interrupt(step):
            fit(tmp_path / "stopped", "--trainer.max_epochs=3", logger=None)
    for run in ("stopped", "whole"):
        assert fit(tmp_path / run, "--trainer.max_epochs=3", logger=None) == 0
    stopped, whole = (resume.read_torch(resume.newest(tmp_path / run)) for run in ("stopped", "whole"))
    assert stopped["global_step"] == whole["global_step"] == 6
    assert stopped["loops"]["fit_loop"]["epoch_progress"] == whole["loops"]["fit_loop"]["epoch_progress"]
    assert resume.equal(stopped["state_dict"], whole["state_dict"])


def test_pairwise_covers_every_pair():
    names = list(resume.FACTORS)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pairs = {(getattr(s, a), getattr(s, b)) for s in resume.pairwise()}
            assert len(pairs) == len(resume.FACTORS[a]) * len(resume.FACTORS[b])


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:Passing over the damaged checkpoint")
def test_one_run_of_each_fault(tmp_path):
    chosen = [
        *(faults.Case(kind, 1 + i % 2, 1 + i) for i, kind in enumerate(faults.KINDS)),
        faults.Case("SIGTERM to one rank", 2, 4),
        faults.Case("NaN in one rank", 2, 1),
        faults.Case(faults.IN_A_ROW, 1, 0),
        faults.Case(faults.COMMAND_LINE, 2, 0),
    ]
    rows = faults.drill(chosen, tmp_path)
    assert len(rows) == len(chosen) and [row for row in rows if row["wrong"]] == []


def test_the_fault_drill_has_runs_enough():
    cases = faults.cases()
    assert len(cases) == len(set(cases)) >= 200
    assert {case.kind for case in cases if case.ranks == 1} >= set(faults.KINDS)
    assert {case.kind for case in cases if case.ranks == 2} == set(faults.KINDS) | set(faults.OTHERS)


def test_faults_compares_bit_by_bit(tmp_path):
    resume.make_images(tmp_path / "images")
    setting = resume.Setting(1, "moco", 0, "max_epochs", 1, False, True)
    resume.fit(setting, tmp_path / "images", tmp_path / "a", None)
    state = resume.read_torch(resume.newest(tmp_path / "a"))
    for key in ("state_dict", "optimizer_states"):
        other = copy.deepcopy(state)
        tensors = other[key] if key == "state_dict" else other[key][0]["state"][0]
        name = next(
            name for name, value in tensors.items() if resume.torch.is_tensor(value) and value.is_floating_point()
        )
        tensors[name].view(-1)[0] += 1e-7
        assert resume.equal(state[key], state[key]) and not resume.equal(state[key], other[key])
