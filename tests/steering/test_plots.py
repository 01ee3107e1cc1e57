"""Pictures of a run: what their artists hold is the run's own data."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

pytest.importorskip("diffusers")
from PIL import Image

from feynkac.fkc import Population
from feynkac.steering import FKSteering, Run, StepRecord, attach
from feynkac.steering.plots import image_grid, plot_ancestry, plot_run

from .zoo import row

K = 4


def weighed(*rows):
    return Population.uniform(len(rows), K).reweighted(torch.tensor(rows, dtype=torch.float64))


@pytest.fixture
def made():
    """Two populations, three moves: the first population is resampled in move 1, nothing is judged in move 2."""
    start = weighed([0.0, 0.1, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0])
    uneven = start.reweighted(torch.tensor([[5.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64))
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    after, ancestors = uneven.resampled(generators, scheme="multinomial")
    assert ancestors is not None
    final = after.reweighted(torch.tensor([[0.0, 0.0, -torch.inf, 1.0], [0.0, 0.5, 0.0, 0.5]], dtype=torch.float64))
    rewards = torch.arange(8.0, dtype=torch.float64).reshape(2, 4)
    return Run(
        population=final,
        records=[
            StepRecord(0, start, None, torch.zeros(2, 4), {"score": rewards}),
            StepRecord(1, uneven, ancestors, torch.zeros(2, 4), {"score": rewards + 10}),
            StepRecord(2, after, None, None),
        ],
        rewards_by_control={"score": torch.where(rewards == 6, -torch.inf, rewards + 20)},
    )


def line(ax, label):
    return next(artist for artist in ax.lines if artist.get_label() == label)


def test_traces_are_those_of_the_run(made):
    ess, reward, evidence = plot_run(made).axes
    for p in range(2):
        shown = line(ess, f"population {p}").get_ydata()
        np.testing.assert_array_equal(shown, [*made.ess_trace[:, p], made.ess[p]])
    np.testing.assert_array_equal(line(ess, "K/2").get_ydata(), [K / 2, K / 2])
    np.testing.assert_array_equal(evidence.lines[0].get_ydata(), [*made.log_evidence_trace[:, 0], made.log_evidence[0]])
    assert reward.get_title(loc="left") == "Rewards: score"
    np.testing.assert_array_equal(line(reward, "mean").get_xdata(), [0, 1, 3])  # move 2 judged nothing
    np.testing.assert_allclose(line(reward, "mean").get_ydata(), [1.5, 11.5, 21.5])
    np.testing.assert_allclose(line(reward, "best").get_ydata(), [3, 13, 23])
    band = reward.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.3)
    assert band[:, 1].max() == pytest.approx(22.7)


def test_impossible_samples_are_left_out_of_rewards(made):
    reward = plot_run(made).axes[1]
    second = reward.lines[2].get_ydata()
    assert second[-1] == pytest.approx(np.mean([24, 25, 27]))  # 6 became impossible


def test_marks_stand_where_the_population_was_resampled(made):
    ess = plot_run(made).axes[0]
    marks = [artist.get_xdata().tolist() for artist in ess.lines if artist.get_marker() == "v"]
    assert marks == [[1], []]
    never = [StepRecord(r.index, r.population, None, r.log_potential, r.rewards) for r in made.records]
    unmarked = plot_run(Run(population=made.population, records=never)).axes[0]
    assert all(not len(artist.get_xdata()) for artist in unmarked.lines if artist.get_marker() == "v")


def test_error_bars_are_the_standard_errors(made):
    evidence = plot_run(made).axes[2]
    bars = [bar.get_segments()[0] for bar in evidence.collections if isinstance(bar, LineCollection)]
    expected = [e for e in made.log_evidence_std_error.tolist() if math.isfinite(e)]
    assert expected
    np.testing.assert_allclose([(bar[1][1] - bar[0][1]) / 2 for bar in bars], expected)


def test_ancestry_follows_every_particle(made):
    ax = plot_ancestry(made, 0).axes[0]
    extinct, surviving = (c for c in ax.collections if isinstance(c, LineCollection))
    segments = [tuple(map(tuple, s)) for c in (extinct, surviving) for s in c.get_segments()]
    parents = made.records[1].ancestors[0].tolist()
    expected = {((m, j), (m + 1, j)) for m in (0, 2) for j in range(K)}
    assert set(segments) == expected | {((1, parent), (2, child)) for child, parent in enumerate(parents)}
    assert len(segments) == 3 * K
    lost = {((0, j), (1, j)) for j in range(K) if j not in parents}
    assert lost
    assert {tuple(map(tuple, s)) for s in extinct.get_segments()} == lost
    roots = len(set(parents))
    assert f"{roots} distinct root" in ax.get_title(loc="left")
    assert int(made.distinct_roots[0]) == roots
    assert f"{K} distinct roots of {K}" in plot_ancestry(made, 1).axes[0].get_title(loc="left")


def test_an_unknown_population_or_control_is_named(made):
    with pytest.raises(IndexError, match="population: got 2, expected 0 to 1"):
        plot_ancestry(made, 2)
    with pytest.raises(KeyError, match="expected one of"):
        plot_run(made, control="beauty")
    with pytest.raises(RuntimeError, match="nothing has run yet"):
        plot_run(Run())


# --- grids ----------------------------------------------------------------------------------------------------------


def grey(level, size=(2, 3)):
    return Image.fromarray(np.full(size, level, dtype=np.uint8))


def bars(fig):
    """Lengths of the bars, without the grey ones below them."""
    return [patch.get_width() for patch in fig.axes[0].patches[1::2]]


def levels(fig):
    return [round(float(np.asarray(image.get_array()).flat[0]) * 255) for image in fig.axes[0].images]


def test_the_heaviest_come_first_with_their_weights():
    log_weights = torch.tensor([1.0, 3.0, 2.0]).log()
    images = [grey(level) for level in (10, 20, 30)]
    fig = image_grid(images, log_weights, rewards=torch.tensor([0.5, 0.25, -1.0]))
    assert levels(fig) == [20, 30, 10]
    np.testing.assert_allclose(bars(fig), [1, 2 / 3, 1 / 3])
    assert [text.get_text() for text in fig.axes[0].texts] == ["0.500  r 0.25", "0.333  r -1", "0.167  r 0.5"]
    given = image_grid(images, log_weights, ordered=False)
    assert levels(given) == [10, 20, 30]
    np.testing.assert_allclose(bars(given), [1 / 3, 1, 2 / 3])


def test_prompts_have_their_own_lines_and_weights():
    log_weights = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, -torch.inf]])
    fig = image_grid([grey(10 * i) for i in range(6)], log_weights, columns=2, titles=["first", "second"])
    assert levels(fig) == [20, 10, 0, 30, 40, 50]
    np.testing.assert_allclose(bars(fig)[3:], [1, 1, 0])
    tops = [image.get_extent()[3] for image in fig.axes[0].images]
    assert tops[0] == tops[1] < tops[2] < tops[3] == tops[4] < tops[5]  # two columns: lines of 2 and 1
    assert [text.get_text() for text in fig.axes[0].texts if text.get_text().isalpha()] == ["first", "second"]


def test_words_with_dollars_are_no_formulas(made, tmp_path):
    rewards = made.rewards_by_control["score"]
    priced = Run(made.population, made.records, rewards_by_control={"score of '$5_bill$ and $'": rewards})
    title = plot_run(priced, path=tmp_path / "run.png").axes[1].get_title(loc="left")
    assert title == "Rewards: score of '$5_bill$ and $'"
    image_grid([grey(0)], torch.zeros(1), titles=["a $5_bill$ and $"], path=tmp_path / "grid.png")


def test_of_a_video_the_middle_frame_is_shown():
    frames = [grey(level) for level in (0, 100, 200)]
    array = np.stack([np.asarray(frame) for frame in frames])[..., None]
    assert levels(image_grid([frames, array], torch.zeros(2))) == [100, 100]


def test_a_collapsed_prompt_is_drawn_too():
    fig = image_grid([grey(0), grey(9)], torch.full((2,), -torch.inf))
    assert bars(fig) == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 3}, "images: got 3 for 4 weights"),
        ({"rewards": torch.zeros(3)}, "rewards: got 3 for 4 weights"),
        ({"columns": 0}, "columns: got 0"),
        ({"titles": ["a"]}, "titles: got 1 for 2 prompts"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    images = [grey(0)] * options.pop("images", 4)
    with pytest.raises(ValueError, match=message):
        image_grid(images, torch.zeros(2, 2), **options)


# --- a real run -----------------------------------------------------------------------------------------------------


def test_pictures_of_a_real_run(tmp_path):
    """Through a pipeline, saved, and without a trace in matplotlib's settings."""
    case, before = row("ddpm"), dict(matplotlib.rcParams)
    with attach(case.pipe, FKSteering(_brightness, 40.0), particles=5, seed=3, ess_threshold=0.9) as run:
        images = case.pipe(**case.call(5, 6)).images
    fig = plot_run(run, path=tmp_path / "run.png")
    plot_ancestry(run, path=tmp_path / "ancestry.png")
    image_grid(images, run.log_weights, rewards=run.rewards, path=tmp_path / "grid.png")
    assert {p.name for p in tmp_path.iterdir()} == {"run.png", "ancestry.png", "grid.png"}
    np.testing.assert_array_equal(fig.axes[0].lines[1].get_ydata(), [*run.ess_trace[:, 0], run.ess[0]])
    assert any(ancestors is not None for ancestors in run.ancestors)
    assert dict(matplotlib.rcParams) == before


def _brightness(images):
    return torch.tensor([np.asarray(image).mean() / 255 for image in images])
