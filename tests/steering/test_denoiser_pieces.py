"""Micro-batching: a batch in pieces gives what the whole batch gives, beside hooks and compiled code."""

import copy

import accelerate.hooks
import diffusers as d
import pytest
import torch
from torch import Tensor, nn

from feynkac.steering.denoiser import DenoiserTap, denoisers_of
from feynkac.steering.denoiser.pieces import evaluate, plan_copies, plan_pieces
from feynkac.steering.denoiser.rows import Call, row_ratio
from feynkac.steering.errors import BatchLayoutError, SteeringError

from .tapping import result, worst
from .zoo import MODULAR_ROWS, ROWS, row

BRANCHES = {"flux": 1, "sd_pix2pix": 3, "lcm": 1, "ddpm": 1, "ddim": 1, "consistency": 1}


def named(cases):
    return {"argvalues": cases, "ids": [case.name for case in cases]}


@pytest.mark.slow
@pytest.mark.parametrize("rows_known", [True, False], ids=["rows known", "rows unknown"])
@pytest.mark.parametrize("case", **named([*ROWS, *MODULAR_ROWS]))
def test_pieces_give_what_the_whole_gives_and_nothing_stays(case, rows_known):
    pipe = case.pipe
    plain = result(case, pipe)
    before = [dict(vars(module)) for module in denoisers_of(pipe)]
    steps = 2 if case.name == "sd_img2img" else 3
    for size in (1, 2, 3):
        tap = DenoiserTap(pipe, chunk_size=size)
        tap.begin_run(3 * case.tiles if rows_known else None)
        with tap.attached():
            assert worst(result(case, pipe), plain) <= 1e-5
        assert tap.rows_evaluated == 3 * steps * BRANCHES.get(case.name, 2)
    assert [dict(vars(module)) for module in denoisers_of(pipe)] == before
    assert torch.equal(result(case, pipe), plain)


class Seeing:
    """Forward hook that notes the rows of every call."""

    def __init__(self, module: nn.Module, name: str = "sample") -> None:
        self.rows: list[int] = []
        self.handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: self.rows.append(len(args[0] if args else kwargs[name])), with_kwargs=True
        )


def test_a_piece_holds_both_branches_of_its_particles():
    case = row("sd")
    pipe = case.build()
    seen = Seeing(pipe.unet)
    tap = DenoiserTap(pipe, chunk_size=2)
    tap.begin_run(5)
    with tap.attached():
        result(case, pipe, 5, 1)
    assert seen.rows == [4, 4, 2]
    tap.begin_run(None)
    with tap.attached():
        result(case, pipe, 5, 1)
    assert seen.rows[3:] == [2] * 5


def test_pieces_of_a_call_know_branches_frames_and_padding():
    def denoiser(sample: Tensor, embeddings: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert len(embeddings) == 2 * len(sample)
        return sample + embeddings.reshape(len(sample), 2).sum(dim=1) + ids.sum(), {"twice": embeddings * 2}

    call = Call(
        ("sample", "encoder_hidden_states", "img_ids"), (torch.arange(10.0), torch.arange(20.0), torch.ones(10, 3)), {}
    )
    whole, extra = denoiser(*call.args)
    for size in range(1, 6):
        for pad in (False, True):
            plan = plan_pieces(10, 5, size, pad)
            assert {len(piece) for piece in plan.pieces[:-1]} <= {2 * size}
            assert len(plan.pieces[-1]) == (2 * size if pad or 5 % size == 0 else 2 * (5 % size))
            out, more = evaluate(denoiser, call, 10, plan)
            assert torch.equal(out, whole)
            assert torch.equal(more["twice"], extra["twice"])
    wrong = plan_pieces(10, 5, 2, False)
    shuffled = type(wrong)(wrong.pieces, torch.roll(wrong.restore, 1))
    assert not torch.equal(evaluate(denoiser, call, 10, shuffled)[0], whole)


def test_copies_are_filled_from_their_originals():
    kept = torch.tensor([0, 0, 2, 2, 0])
    call = Call(("sample",), (torch.arange(10.0),), {})
    for size, count in ((5, 1), (1, 2)):
        plan = plan_copies(10, kept, size, False)
        assert (len(plan.pieces), plan.evaluated) == (count, 4)
        out = evaluate(lambda sample: 2.0 * sample, call, 10, plan)
        assert out.tolist() == [0, 0, 4, 4, 0, 10, 10, 14, 14, 10]


def test_tokens_are_no_rows_even_when_there_are_as_many():
    """Flux's position tables have one row a token: 16 tokens, 16 images."""
    case = row("flux")
    plain = result(case, case.pipe, 16, 1)
    tap = DenoiserTap(case.pipe, chunk_size=5)
    with tap.attached():
        assert worst(result(case, case.pipe, 16, 1), plain) <= 1e-5
    assert row_ratio("img_ids", torch.zeros(16, 3), 16) == 0
    assert row_ratio("img_ids", torch.zeros(16, 9, 3), 16) == 1


def test_tokens_taken_for_rows_are_seen(monkeypatch):
    """Negative control of the test above: positions cut with the rows no longer fit the tokens."""
    monkeypatch.setattr("feynkac.steering.denoiser.rows.TOKENS", ())
    monkeypatch.setattr("feynkac.steering.denoiser.rows.per_row", lambda name: True)
    case = row("flux")
    with DenoiserTap(case.pipe, chunk_size=5).attached(), pytest.raises(RuntimeError, match="size of tensor"):
        result(case, case.pipe, 16, 1)


def test_unknown_arguments_are_refused_by_name():
    with pytest.raises(SteeringError, match=r"'wave_table' of shape \(6, 2\).*register_argument"):
        row_ratio("wave_table", torch.zeros(6, 2), 6)
    assert row_ratio("wave_table", torch.zeros(1, 2), 6) == 0
    with pytest.raises(SteeringError, match="'timestep' has 4 entries for 6 rows"):
        row_ratio("timestep", torch.zeros(4), 6)


def test_offload_hooks_fire_below_the_pieces():
    case = row("sd3")
    pipe = case.build()
    plain = result(case, pipe)

    class Counting(accelerate.hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    hook = Counting()
    accelerate.hooks.add_hook_to_module(pipe.transformer, hook)
    tap = DenoiserTap(pipe, chunk_size=1)
    tap.begin_run(3)
    with tap.attached():
        assert worst(result(case, pipe), plain) <= 1e-5
    assert hook.calls == 9
    assert torch.equal(result(case, pipe), plain)
    accelerate.hooks.remove_hook_from_module(pipe.transformer)
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    assert next(pipe.transformer.parameters()).device.type == "meta"
    with tap.attached():
        assert worst(result(case, pipe), plain) <= 1e-5
    assert next(pipe.transformer.parameters()).device.type == "meta"


class Graphs:
    """A backend that runs graphs eagerly and notes the rows each was made for."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, graph, inputs):
        self.rows.append(max((len(x) for x in inputs if isinstance(x, Tensor) and x.ndim == 4), default=0))
        return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "control"])
def test_compiled_modules_see_one_shape(in_place, padded, monkeypatch):
    torch._dynamo.reset()
    case, graphs = row("dit"), Graphs()
    pipe = case.build()
    truth = result(case, pipe, 5, 2)
    if in_place:
        pipe.transformer.compile(backend=graphs, dynamic=False)
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend=graphs, dynamic=False)
    assert worst(result(case, pipe, 2, 2), result(case, row("dit").build(), 2, 2)) <= 1e-5
    alone = len(graphs.rows)
    assert alone > 0
    if not padded:
        monkeypatch.setattr("feynkac.steering.denoiser.tapped.is_compiled", lambda module: False)
    tap = DenoiserTap(pipe, chunk_size=4)  # pieces of 4 rows of 10, as the call of two particles had
    tap.begin_run(10)
    with tap.attached():
        assert worst(result(case, pipe, 5, 2), truth) <= 1e-5
        assert worst(result(case, pipe, 5, 2), truth) <= 1e-5
    assert tap.rows_evaluated == 4 * (12 if padded else 10)
    if padded:
        assert len(graphs.rows) == alone
    else:
        assert len(graphs.rows) > alone  # the last piece of two rows costs another graph
    result(case, pipe, 2, 2)
    assert "_compiled_call_impl" in vars(pipe.transformer) if in_place else True


def test_compiled_inside_the_block_it_stays_compiled():
    pipe = row("sd").build()
    with DenoiserTap(pipe).attached():
        pipe.unet.compile(backend="eager")
        own = vars(pipe.unet)["_compiled_call_impl"]
    assert vars(pipe.unet)["_compiled_call_impl"] is own


def test_feature_caches_and_pieces_exclude_each_other():
    pipe = row("flux").build()
    pipe.transformer.enable_cache(d.FirstBlockCacheConfig(threshold=0.05))
    with (
        pytest.raises(SteeringError, match=r"FluxTransformer2DModel: a feature cache is on.*disable_cache"),
        DenoiserTap(pipe, chunk_size=1).attached(),
    ):
        pass
    pipe.transformer.disable_cache()
    tap = DenoiserTap(pipe, chunk_size=1)
    with tap.attached():
        pipe.transformer.enable_cache(d.FirstBlockCacheConfig(threshold=0.05))
        with pytest.raises(SteeringError, match="a feature cache is on"):
            result(row("flux"), pipe)


def test_an_exception_restores_and_taps_do_not_nest():
    pipe = row("sd").build()
    tap = DenoiserTap(pipe, chunk_size=1)
    before = dict(vars(pipe.unet))

    def failing():
        with tap.attached():
            assert vars(pipe.unet) != before
            with pytest.raises(SteeringError, match="UNet2DConditionModel is tapped already"):
                tap.attached().__enter__()
            raise RuntimeError("reward failed")

    with pytest.raises(RuntimeError, match="reward failed"):
        failing()
    assert vars(pipe.unet) == before


def test_wrong_arguments_are_refused():
    pipe = row("sd").pipe
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        DenoiserTap(pipe, chunk_size=0)
    with pytest.raises(SteeringError, match="no denoiser"):
        DenoiserTap(pipe.scheduler, record=True)
    assert DenoiserTap(pipe.scheduler).modules == ()
    tap = DenoiserTap(pipe)
    tap.begin_run(6, unit=3)
    with pytest.raises(BatchLayoutError, match="sees 9 rows, expected 6"):
        tap.confirm_rows(9)
    with pytest.raises(BatchLayoutError, match="sees 8 rows, expected a multiple of 3"):
        tap.begin_run(8, unit=3)


class Listing(nn.Module):
    """A denoiser given one tensor a row, as Z-Image's is."""

    def forward(self, x, t, cap_feats, wave_table=None):
        return ([2.0 * entry for entry in x],)


def test_lists_of_rows_pass_and_are_refused_where_they_would_be_cut():
    class Pipe:
        unet = Listing()

    x, caps = [torch.ones(4, 1, 8, 8)] * 6, [torch.ones(7, 16)] * 6
    tap = DenoiserTap(Pipe())
    tap.check_layout(2, 3)
    with tap.attached():
        assert len(Pipe.unet(x, torch.zeros(6), caps)[0]) == 6
    assert tap.rows_evaluated == 6
    cutting = DenoiserTap(Pipe(), record=True)
    with cutting.attached(), pytest.raises(SteeringError, match="without a tensor"):
        Pipe.unet(x, torch.zeros(6), caps)


def test_unknown_arguments_hinder_nothing_but_pieces():
    class Toy(nn.Module):
        def forward(self, sample, wave_table):
            return (sample + wave_table.sum(),)

    class Pipe:
        unet = Toy()

    sample, table = torch.zeros(6, 2), torch.ones(6, 2)
    tap = DenoiserTap(Pipe(), record=True)
    tap.begin_run(3)
    tap.check_layout(1, 3)
    tap.keep = torch.tensor([0, 0, 0])
    with tap.attached():
        assert torch.equal(Pipe.unet(sample, table)[0], sample + 12.0)
        assert tap.rows_evaluated == 6  # not compared, so not skipped
        tap.keep, tap.chunk_size = None, 1
        with pytest.raises(SteeringError, match="'wave_table'"):
            Pipe.unet(sample, table)


def test_a_copy_made_inside_the_block_is_not_tapped(tmp_path):
    pipe = row("sd").build()
    tap = DenoiserTap(pipe, chunk_size=1)
    before = type(pipe.unet)
    with tap.attached():
        assert type(pipe.unet) is before
        twin = copy.deepcopy(pipe.unet)
        assert "_compiled_call_impl" not in vars(twin)
        sample, text = torch.zeros(4, 4, 8, 8), torch.zeros(4, 8, 16)
        with torch.no_grad():
            twin(sample, 3, encoder_hidden_states=text)
            assert tap.rows_evaluated == 0
            pipe.unet(sample, 3, encoder_hidden_states=text)
        assert tap.rows_evaluated == 4
        pipe.unet.save_pretrained(tmp_path)
    assert "feynkac" not in (tmp_path / "config.json").read_text()
