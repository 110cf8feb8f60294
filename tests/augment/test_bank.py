"""Properties of every type of distortion, by table, and of the module that draws and applies them."""

import math

import numpy as np
import pytest
import torch

from csrtrain.augment import color_spaces, compiled, distort
from csrtrain.augment.bank import PRISTINE, DistortionBank
from csrtrain.augment.distort import BANKS, LEVELS, MEDICAL, NATURAL, ROWS, Distortion, rows_for
from csrtrain.augment.distortions import blur, color, contrast, noise
from csrtrain.data import decode, samples
from csrtrain.data.images import native

NAMES = list(ROWS)
ON_DEVICE = [name for name in NAMES if not ROWS[name].in_worker]
SIDE = 224


def channels_of(row):
    return (3,) if row.color else (1, 3)


@pytest.fixture(scope="module")
def real():
    """20 crops of real photographs and scans that ship inside installed packages, by number of channels: (20,C,S,S)."""
    addresses = [*samples.natural(), *samples.medical()]
    crops = {1: [], 3: []}
    for number in range(200):
        image = decode.read(addresses[number % len(addresses)])
        u = np.random.default_rng(number).random(2)
        crop = native(image, SIDE, *u)
        crop = crop.float() / 255 if crop.dtype == torch.uint8 else crop
        for channels, found in crops.items():
            if crop.std() > 0.05 and len(found) < 20 and not (channels == 3 and crop.shape[0] == 1):
                found.append(decode.to_channels(crop, channels))
    return {channels: torch.stack(found) for channels, found in crops.items()}


def applied(row, x, level, seed=5):
    bank, n = DistortionBank([row]), len(x)
    seeds = (np.arange(n, dtype=np.int64) * 7919 + seed)[:, None]
    return bank(x, bank.drawn(np.zeros((n, 1), dtype=np.int64), np.full((n, 1), float(level)), seeds))


def error(a, b):
    return float((a - b).square().mean((1, 2, 3)).median())


@pytest.mark.parametrize("name", NAMES)
def test_range_shape_and_dtype(real, name):
    row = ROWS[name]
    for channels in channels_of(row):
        x = real[channels][:3, :, :64, :90]
        original = x.clone()
        for level in (1, 5):
            y = applied(row, x, level)
            assert y.shape == x.shape and y.dtype == torch.float32
            assert 0 <= float(y.min()) and float(y.max()) <= 1
        assert torch.equal(x, original)


@pytest.mark.parametrize("name", NAMES)
def test_extremes_stay_finite(name):
    row = ROWS[name]
    for channels in channels_of(row):
        ramp = torch.linspace(0, 1, 64).expand(channels, 64, 64)
        x = torch.stack([torch.zeros(channels, 64, 64), torch.ones(channels, 64, 64), ramp])
        for level in (1, 5):
            assert torch.isfinite(applied(row, x, level)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_draw_gives_the_same_pixels_in_any_batch(real, name):
    row = ROWS[name]
    x = real[channels_of(row)[-1]][:11]
    bank = DistortionBank([row])
    levels = np.linspace(1, 5, 11)[:, None]
    seeds = (np.arange(11, dtype=np.int64) * 104729)[:, None]
    types = np.zeros((11, 1), dtype=np.int64)
    together = bank(x, bank.drawn(types, levels, seeds))
    for rows in ([4], [10, 2], list(range(10, -1, -1))):
        apart = bank(x[rows], bank.drawn(types[rows], levels[rows], seeds[rows]))
        assert float((together[rows] - apart).abs().max()) < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_severity_raises_the_error_and_0_is_pristine(real, name):
    """Of all classes those of severity 0 alone; the error is the median over images."""
    row = ROWS[name]
    x = real[3 if row.color else 1]
    errors = {}
    for level, severity in enumerate(row.severities, start=1):
        distorted = applied(row, x, level)
        changed = float((distorted - x).abs().amax((1, 2, 3)).median())
        assert (changed < 1e-3) == (severity == 0), (level, changed)
        errors.setdefault(abs(severity), []).append(error(distorted, x))
    ordered = [errors[severity] for severity in sorted(errors)]
    for lower, higher in zip(ordered, ordered[1:], strict=False):
        assert max(lower) < min(higher), errors


@pytest.mark.parametrize("name", ON_DEVICE)
def test_nothing_is_read_from_the_device(no_host_reads, name):
    # On the meta device there are no values to read: what a GPU runs must be free of them.
    row = ROWS[name]
    for channels in channels_of(row):
        x = torch.rand(3, channels, 64, 90).to("meta")
        value, seeds = torch.ones(3).to("meta"), torch.arange(3).to("meta")
        with no_host_reads():
            assert row.function(x, value, seeds).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(real, name):
    row = ROWS[name]
    x = real[3 if row.color else 1][:4]
    expected = applied(row, x, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(applied(row, x, 4), expected)


def test_the_natural_rows_are_those_of_kadis():
    assert len(NATURAL) == 25 and sum(severity == 0 for row in NATURAL for severity in row.severities) == 4
    assert DistortionBank(NATURAL).class_of.max() == 125


@pytest.mark.parametrize("modality", BANKS)
def test_every_bank_is_made_of_rows_that_apply(modality):
    for channels in (1, 3, 4):
        rows = rows_for(modality, channels)
        assert len(rows) >= 8 and not any(row.in_worker or (row.color and channels != 3) for row in rows)
        bank = DistortionBank(rows)
        drawn = bank.draw(0, 0, np.arange(24), np.zeros(24, dtype=bool))
        assert bank(torch.rand(24, channels, 48, 48), drawn).shape == (24, channels, 48, 48)
    assert len({row.name for row in ROWS.values()}) == len(ROWS)


POSITIONS = np.arange(4000)
NONE = np.zeros(4000, dtype=bool)


def test_every_class_is_as_likely_as_any_other():
    bank = DistortionBank(NATURAL)
    types, levels = [], []
    for epoch in range(5):
        drawn = bank.draw(1, epoch, POSITIONS, NONE)
        types.append(drawn.types[:, 0])
        levels.append(drawn.levels[:, 0])
    types, levels = np.concatenate(types), np.concatenate(levels)
    counts = [np.sum(types == -1)] + [np.sum((types == t) & (levels == k)) for t in range(25) for k in range(1, 6)]
    assert sum(counts) == 20000
    expected = 20000 / 126
    assert max(abs(count - expected) for count in counts) < 4.5 * math.sqrt(expected)


def test_a_draw_depends_on_seed_epoch_and_position_alone():
    bank = DistortionBank(NATURAL)
    whole = bank.draw(1, 2, POSITIONS, NONE, count=2)
    part = bank.draw(1, 2, POSITIONS[700:720], NONE[:20], count=2)
    assert np.array_equal(whole.types[700:720], part.types) and torch.equal(whole.seeds[700:720], part.seeds)
    assert torch.equal(whole.values[700:720], part.values)
    assert not np.array_equal(whole.types, bank.draw(1, 3, POSITIONS, NONE, count=2).types)
    assert not np.array_equal(whole.types, bank.draw(2, 2, POSITIONS, NONE, count=2).types)


def test_positions_in_a_row_can_share_a_class_with_noise_of_their_own():
    bank = DistortionBank(NATURAL)
    drawn = bank.draw(1, 2, POSITIONS, NONE, per_class=4)
    groups = drawn.types[:4000, 0].reshape(-1, 4), drawn.levels[:4000, 0].reshape(-1, 4)
    assert all((values == values[:, :1]).all() for values in groups)
    assert len(np.unique(groups[0][:, 0])) == 26 and len(torch.unique(drawn.seeds)) == len(POSITIONS)
    part = bank.draw(1, 2, POSITIONS[702:720], NONE[:18], per_class=4)  # whichever part of a batch a rank has
    assert np.array_equal(drawn.types[702:720], part.types) and torch.equal(drawn.seeds[702:720], part.seeds)


@pytest.mark.parametrize("parts", [1, 300, 500, 777, 999])
def test_authentic_images_in_between_do_not_count_as_in_a_row(parts):
    bank = DistortionBank(NATURAL)
    authentic = np.diff(np.arange(len(POSITIONS) + 1) * parts // 1000) > 0
    drawn = bank.draw(1, 2, POSITIONS, authentic, per_class=4, authentic_parts=parts)
    types, levels = drawn.types[~authentic, 0], drawn.levels[~authentic, 0]
    whole = len(types) // 4 * 4
    for values in (types[:whole].reshape(-1, 4), levels[:whole].reshape(-1, 4)):
        assert (values == values[:, :1]).all()
    assert len(set(types[::4])) > min(10, len(types) // 8)
    rank = slice(1702, 1720)  # whichever part of a batch a rank has
    part = bank.draw(1, 2, POSITIONS[rank], authentic[rank], per_class=4, authentic_parts=parts)
    assert np.array_equal(drawn.types[rank], part.types) and np.array_equal(drawn.levels[rank], part.levels)


def test_authentic_images_get_nothing():
    bank = DistortionBank(NATURAL)
    authentic = POSITIONS % 2 == 0
    drawn = bank.draw(1, 0, POSITIONS, authentic)
    assert (drawn.types[authentic] == -1).all() and (drawn.types[~authentic] >= 0).mean() > 0.98
    x = torch.rand(6, 3, 48, 48)
    y = bank(x, bank.draw(1, 0, POSITIONS[:6], authentic[:6]))
    assert torch.equal(y[::2], x[::2]) and not torch.equal(y[1::2], x[1::2])


def test_values_and_severities_are_those_of_the_table():
    bank = DistortionBank(NATURAL)
    drawn = bank.draw(1, 0, POSITIONS, NONE)
    for t, level, value, severity in zip(
        drawn.types[:, 0], drawn.levels[:, 0], drawn.values[:, 0], bank.severity(drawn)[:, 0], strict=True
    ):
        if t >= 0:
            assert float(value) == np.float32(NATURAL[t].values[int(level) - 1])
            assert severity == abs(NATURAL[t].severities[int(level) - 1])
    assert (bank.severity(drawn)[drawn.types < 0] == 0).all()


def test_continuous_levels_lie_between_and_are_classed_by_the_nearest():
    bank = DistortionBank(NATURAL)
    drawn = bank.draw(1, 0, POSITIONS, NONE, continuous=True)
    assert drawn.levels.min() == 1 and drawn.levels.max() == 5 and len(np.unique(drawn.levels)) > 3100
    counts = np.bincount(np.rint(drawn.levels[:, 0]).astype(int))[1:]
    assert len(counts) == 5 and np.abs(counts - 800).max() < 4 * math.sqrt(800)
    t = 0  # Gaussian blur: 0.1, 0.5, 1, 2, 5
    picked = bank.drawn(np.full((3, 1), t), np.array([[1.5], [4.25], [5.0]]), np.zeros((3, 1), dtype=np.int64))
    assert np.allclose(picked.values.flatten(), [0.3, 2.75, 5.0])
    assert np.allclose(bank.severity(picked).flatten(), [0.5, 3.25, 4.0])
    assert bank.class_ids(picked).tolist() == [2, 4, 5]


def test_between_two_levels_a_signed_type_may_change_nothing(real):
    """change_contrast passes -0.2, which changes nothing, at level 3.5; mean_shift is 0 at level 3."""
    bank = DistortionBank([ROWS["change_contrast"], ROWS["mean_shift"]])
    levels = np.array([[3.0], [3.25], [3.4], [3.5], [3.6], [3.75], [4.0], [4.5], [2.25], [2.75], [3.25], [3.75]])
    drawn = bank.drawn(np.repeat([[0], [1]], [8, 4], axis=0), levels, np.zeros((12, 1), dtype=np.int64))
    assert np.allclose(bank.severity(drawn)[:8, 0], [0.2, 0.1, 0.04, 0, 0.04, 0.1, 0.2, 0.3])
    assert np.allclose(bank.severity(drawn)[8:, 0], [0.06, 0.02, 0.02, 0.06])
    ids = bank.class_ids(drawn)
    assert (ids[[2, 3, 4]] == PRISTINE).all() and ids[[0, 6]].tolist() == [3, 4] and ids[8:].tolist() == [7, 0, 0, 9]
    x = real[1][:1].expand(12, -1, -1, -1)
    assert float((bank(x, drawn) - x)[3].abs().max()) < 1e-5


def test_class_ids_merge_what_equals_pristine():
    bank = DistortionBank(NATURAL)
    types = np.repeat(np.arange(25), 5)[:, None]
    levels = np.tile(np.arange(1.0, 6.0), 25)[:, None]
    ids = bank.class_ids(bank.drawn(types, levels, np.zeros((125, 1), dtype=np.int64)))
    assert len(set(ids.tolist())) == 122 and (ids == PRISTINE).sum() == 4
    none = bank.drawn(np.full((1, 1), -1), np.ones((1, 1)), np.zeros((1, 1), dtype=np.int64))
    assert bank.class_ids(none).tolist() == [PRISTINE]


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name].color])
def test_what_changes_colours_alone_leaves_grey_images_and_nothing_else_does(real, name):
    x = real[1][:4].expand(-1, 3, -1, -1).contiguous()
    changed = max(float((applied(ROWS[name], x, level) - x).abs().max()) for level in (1, 3, 5))
    assert (changed < 2e-3) == ROWS[name].chroma, changed


@pytest.mark.parametrize("name", [row.name for row in MEDICAL])
def test_a_grey_scan_in_three_channels_stays_grey(real, name):
    y = applied(ROWS[name], real[1][:4].expand(-1, 3, -1, -1).contiguous(), 4)
    assert float((y - y[:, :1]).abs().max()) < 2e-6


def test_what_changes_nothing_on_a_grey_image_is_pristine():
    bank = DistortionBank([ROWS["saturate_hsv"], ROWS["saturate_lab"], ROWS["jpeg"]])
    types = np.array([[0, -1], [0, -1], [1, 0], [0, 2], [2, 0], [2, -1]])
    drawn = bank.drawn(types, np.full((6, 2), 2.0), np.zeros((6, 2), dtype=np.int64))
    grey = np.array([False, True, True, True, True, True])
    plain, ids = bank.class_ids(drawn), bank.class_ids(drawn, grey)
    assert ids.tolist() == [plain[0], PRISTINE, PRISTINE, plain[5], plain[4], plain[5]]


def test_several_distortions_follow_each_other_and_have_an_id_of_their_own(real):
    bank = DistortionBank(NATURAL)
    blur, jpeg, shift = (next(t for t, row in enumerate(NATURAL) if row.name == name) for name in NAMES_OF_THREE)
    types = np.array([[blur, jpeg], [jpeg, blur], [jpeg, -1], [shift, jpeg], [jpeg, shift], [-1, -1]])
    levels = np.array([[4.0, 5.0], [5.0, 4.0], [5.0, 1.0], [3.0, 5.0], [5.0, 3.0], [1.0, 1.0]])
    drawn = bank.drawn(types, levels, np.zeros((6, 2), dtype=np.int64))
    x = real[3][:1].expand(6, -1, -1, -1)
    y = bank(x, drawn)
    literally = applied(NATURAL[jpeg], applied(NATURAL[blur], x[:1], 4), 5)
    assert (y[0] - literally[0]).abs().max() < 1e-5
    assert error(y[:1], y[1:2]) > 1e-5
    a, b, c, d, e, f = bank.class_ids(drawn).tolist()
    assert len({a, b, c, f}) == 4 and c == d == e and f == PRISTINE  # a mean shift of level 3 changes nothing
    drawn = bank.draw(1, 0, POSITIONS, NONE, count=3)
    assert set((drawn.types >= 0).sum(1).tolist()) == {0, 1, 2, 3}
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in drawn.types)


NAMES_OF_THREE = ("gaussian_blur", "jpeg", "mean_shift")


def test_uint8_and_float32_agree(real):
    bank = DistortionBank(rows_for("natural", 3))
    bytes_ = (real[3][:8] * 255).round().to(torch.uint8)
    drawn = bank.draw(3, 0, np.arange(8), np.zeros(8, dtype=bool))
    assert torch.equal(bank(bytes_, drawn), bank(bytes_.float() / 255, drawn))


def test_values_out_of_range_are_clamped_where_nothing_is_distorted_too():
    bank = DistortionBank([ROWS["gaussian_blur"]])
    x = torch.linspace(-0.01, 1.01, 32).expand(2, 3, 32, 32)
    drawn = bank.drawn(np.array([[-1], [0]]), np.ones((2, 1)), np.zeros((2, 1), dtype=np.int64))
    assert torch.equal(bank(x, drawn)[0], x[0].clamp(0, 1))


def test_threads_change_nothing(real):
    bank = DistortionBank(rows_for("natural", 3))
    x = real[3]
    drawn = bank.draw(3, 0, np.arange(20), np.zeros(20, dtype=bool))
    alone = bank(x, drawn)
    torch.set_num_threads(3)
    try:
        assert torch.equal(bank(x, drawn), alone)
    finally:
        torch.set_num_threads(1)


KERNELS = {
    "saturate_lab": (color._saturate, 3.0),
    "brighten": (contrast._bend_colors, 0.9),
    "darken": (contrast._bend_colors, 0.2),
    "change_contrast": (contrast._bend_halves, -0.6),
    "denoise": (noise._filter, 0.03),
}


ALL_KERNELS = {
    kernel
    for module in (color_spaces, blur, color, contrast, noise)
    for kernel in vars(module).values()
    if isinstance(kernel, compiled.Kernel)
}


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_compiled_equals_the_library_form(real, name):
    kernel, value = KERNELS[name]
    for image in real[3][:5]:
        value_ = torch.tensor(value).view(1, 1, 1)
        expected = kernel.uncompiled(image, value_).clamp(0, 1)
        torch.testing.assert_close(kernel.function(image, value_).clamp(0, 1), expected, atol=3e-5, rtol=0)


@pytest.mark.slow  # a minute of compilation
@pytest.mark.parametrize("channels", (1, 3))
def test_compiled_the_bank_does_the_same_in_any_batch(real, channels):
    rows = rows_for("natural", channels)
    kinds = len(rows)
    drawn = DistortionBank(rows).drawn(np.arange(kinds)[:, None], np.full((kinds, 1), 4.0), np.arange(kinds)[:, None])
    x = real[channels].repeat(2, 1, 1, 1)[:kinds]
    expected, found = (DistortionBank(rows, compiled=on)(x, drawn) for on in (False, True))
    for row, a, b in zip(rows, expected, found, strict=True):
        # A colour or a level on the edge between two may turn.
        assert ((a - b).abs() > 1e-4).float().mean() < 1e-3, row.name
    used = {kernel for kernel in ALL_KERNELS if kernel._compiled is not None}
    assert {kernel.failure for kernel in used} == {None} and len(used) >= (5 if channels == 1 else 11)
    for k in (0, [row.name for row in rows].index("denoise")):
        one = DistortionBank(rows).drawn(np.array([[k]]), np.array([[4.0]]), np.array([[k]]))
        assert torch.equal(DistortionBank(rows, compiled=True)(x[k : k + 1], one)[0], found[k])


@pytest.mark.parametrize("channels", (1, 3))
def test_without_a_compiler_the_bank_does_the_same(real, channels, monkeypatch):
    def no_compiler(function, **options):
        raise RuntimeError("Expected a compiler, got none.")

    monkeypatch.setattr(torch, "compile", no_compiler)
    for kernel in ALL_KERNELS:
        monkeypatch.setattr(kernel, "_compiled", None)
        monkeypatch.setattr(kernel, "failure", None)
    rows = rows_for("natural", channels)
    kinds = len(rows)
    drawn = DistortionBank(rows).drawn(np.arange(kinds)[:, None], np.full((kinds, 1), 4.0), np.arange(kinds)[:, None])
    x = real[channels].repeat(2, 1, 1, 1)[:kinds, :, :64, :64]
    expected, found = (DistortionBank(rows, compiled=on)(x, drawn) for on in (False, True))
    assert torch.equal(found, expected) and "Expected a compiler" in contrast._bend_halves.failure


def test_compilation_is_wanted_while_a_bank_that_compiles_works_and_not_after():
    seen = []

    def function(x, values, seeds):
        seen.append(compiled._wanted)
        return x

    row = Distortion("spy", function, (1.0,) * 5, "", "noise", (1.0,) * 5, "test")
    for on in (True, False):
        bank = DistortionBank([row], compiled=on)
        bank(torch.rand(1, 1, 40, 40), bank.drawn(np.array([[0]]), np.array([[1.0]]), np.array([[0]])))
    assert seen == [True, False] and not compiled._wanted


def test_the_worker_applies_what_the_device_leaves_out(real):
    rows = rows_for("natural", 3, ["jpeg2000", "gaussian_blur"])
    whole, split = DistortionBank(rows), DistortionBank(rows, in_worker=True)
    bytes_ = (real[3][:12] * 255).round().to(torch.uint8)
    positions, none = np.arange(100, 112), np.zeros(12, dtype=bool)
    drawn = whole.draw(3, 1, positions, none)
    assert {0, 1} <= set(drawn.types[:, 0].tolist())
    in_worker = split.in_worker(bytes_, 3, 1, positions)
    is_blur = torch.from_numpy(drawn.types[:, 0] != 0)
    assert torch.equal(in_worker[is_blur], bytes_[is_blur]) and not torch.equal(in_worker, bytes_)
    assert (split(in_worker, drawn) - whole(bytes_, drawn)).abs().max() < 0.51 / 255
    deep = split.in_worker(bytes_.float() / 255, 3, 1, positions)
    assert deep.dtype == torch.float32 and (split(deep, drawn) - whole(bytes_, drawn)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="Expected 1 for model.max_distortions with jpeg2000, got 2"):
        split.draw(3, 1, positions, none, count=2)


def test_wrong_input():
    bank = DistortionBank(NATURAL)
    drawn = bank.draw(0, 0, np.arange(4), np.zeros(4, dtype=bool))
    with pytest.raises(ValueError, match="in uint8, or float32"):
        bank(torch.rand(4, 3, 32, 32, dtype=torch.float64), drawn)
    with pytest.raises(ValueError, match="at least 32 x 32 px, got 48 x 31. Continue or enlarge"):
        bank(torch.rand(4, 3, 48, 31), drawn)
    with pytest.raises(ValueError, match="parameters of 5 samples, got 4"):
        bank(torch.rand(5, 3, 48, 48), drawn)
    grey = bank.drawn(np.full((4, 1), 3), np.ones((4, 1)), np.zeros((4, 1), dtype=np.int64))
    with pytest.raises(ValueError, match="Expected 3 channels for color_diffusion, got 1"):
        bank(torch.rand(4, 1, 48, 48), grey)
    with pytest.raises(ValueError, match="at least one type"):
        DistortionBank([])
    with pytest.raises(ValueError, match=r"Expected 1 to 8 for model.max_distortions with 25 type\(s\), got 9"):
        bank.draw(0, 0, np.arange(4), np.zeros(4, dtype=bool), count=9)


@pytest.mark.parametrize(
    "names, channels, match",
    [
        (["blur"], 3, "got blur. There are gaussian_blur"),
        (["jpeg", "jpeg"], 3, "different names of distortions, got jpeg, jpeg"),
        ([], 3, "got none"),
        (["saturate_hsv"], 1, r"types for 1 channel\(s\), got saturate_hsv"),
    ],
)
def test_wrong_names(names, channels, match):
    with pytest.raises(ValueError, match=match):
        rows_for("natural", channels, names)


def test_a_new_row_needs_no_more_than_a_function():
    def invert(x, value, seeds):
        return (1 - value[:, None, None, None]) * x + value[:, None, None, None] * (1 - x)

    row = Distortion("invert", invert, (0.1, 0.2, 0.3, 0.4, 0.5), "share", "color", (1, 2, 3, 4, 5), "a test")
    assert distort.LEVELS == LEVELS == 5
    x = torch.rand(2, 1, 32, 32)
    assert torch.allclose(applied(row, x, 5), torch.full_like(x, 0.5))
