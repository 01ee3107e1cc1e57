"""Built-in rewards against values known by hand, and what happens when a reward fails."""

import importlib.metadata
import math
import multiprocessing
import pickle
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from feynkac.fkc import plugins
from feynkac.fkc.errors import NonFiniteWeightWarning
from feynkac.steering.rewards import (
    QED,
    Brightness,
    ClassLogProb,
    ClipScore,
    JpegSize,
    LogP,
    RewardCalls,
    RewardError,
    Sharpness,
    SyntheticAccessibility,
    WeightedSum,
    WrongLength,
    available_rewards,
    cached,
    content_key,
    load_reward,
    reward_name,
    through,
)


def grey(values) -> Image.Image:
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def noise(n=3, channels=3, size=8, seed=0):
    return torch.rand((n, channels, size, size), generator=torch.Generator().manual_seed(seed))


class Recorder:
    """Reward of strings or numbers: float of each; remembers what it was handed; raises or not as told."""

    def __init__(self, bad=(), delay=None):
        self.bad, self.delay, self.seen = set(bad), delay, []

    def __call__(self, samples):
        self.seen.append(list(samples))
        if self.delay:
            time.sleep(self.delay * float(samples[0]))
        if self.bad & set(samples):
            raise KeyError(f"cannot do {samples}")
        return [float(sample) for sample in samples]


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "coded"), [(8, 1), (64, 48), (24, 7)])
def test_jpeg_size_of_a_constant_image_by_the_standard(side, coded):
    """Grey baseline JPEG: 330 bytes of markers and standard tables; a block of level 128 is "00" and "1010", 6 bits."""
    blocks = (side // 8) ** 2
    assert coded == math.ceil(6 * blocks / 8)
    image = grey(np.full((side, side), 128))
    assert JpegSize(quality=95)([image]).tolist() == [-(330 + coded) / 1000]


def test_jpeg_size_grows_with_quality_and_content():
    image = grey(noise(1, 1, 32)[0, 0].mul(255).round())
    low, high = (JpegSize(quality=q)([image]).item() for q in (20, 90))
    assert high < low < JpegSize(quality=20)([grey(np.full((32, 32), 128))]).item() < 0
    for quality in (0, 96):
        with pytest.raises(ValueError, match=rf"quality: got {quality}, expected 1 to 95"):
            JpegSize(quality=quality)


def test_brightness_of_known_arrays():
    black_and_white = grey([[0, 255], [255, 255]])
    assert Brightness()([black_and_white, grey(np.full((4, 7), 51))]).tolist() == pytest.approx([0.75, 0.2], abs=1e-7)
    primaries = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    assert Brightness()(primaries).tolist() == pytest.approx([0.299, 0.587, 0.114], abs=1e-7)
    assert Brightness(bounds=(-1.0, 1.0))(torch.zeros(2, 1, 3, 3)).tolist() == [0.5, 0.5]


def test_sharpness_of_known_arrays():
    checkerboard = torch.arange(8)[:, None].add(torch.arange(8)).remainder(2).float()
    point = torch.zeros(5, 5)
    point[2, 2] = 1.0
    assert Sharpness()(checkerboard.expand(2, 1, 8, 8)).tolist() == [16.0, 16.0]
    assert Sharpness()(point[None, None]).item() == pytest.approx(20 / 9)
    ramp = torch.linspace(0, 1, 9).expand(1, 1, 9, 9)
    assert Sharpness()(ramp).item() == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="at least 3 x 3"):
        Sharpness()(torch.zeros(1, 1, 2, 5))


@pytest.mark.parametrize("reward", [JpegSize(), Brightness(), Sharpness()], ids=reward_name)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_any_form_have_one_reward(reward, channels):
    bytes_ = noise(3, channels).mul(255).round()
    tensor = bytes_ / 255
    arrays = bytes_.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    files = [Image.fromarray(a[..., 0] if channels == 1 else a) for a in arrays]
    expected = reward(files)
    assert expected.shape == (3,)
    before = tensor.clone()
    forms = [tensor, list(tensor), tensor.permute(0, 2, 3, 1).numpy(), type(reward)(bounds=(-1, 1))]
    for form in forms[:3]:
        torch.testing.assert_close(reward(form), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(forms[3](tensor * 2 - 1), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(tensor, before)
    singles = torch.cat([reward([file]) for file in files])
    torch.testing.assert_close(singles, expected)


@pytest.mark.parametrize("samples", ["a.png", 3, torch.zeros(3, 8, 8), ["a", "b"], torch.zeros(1, 2, 8, 8)])
def test_what_is_no_image_is_refused(samples):
    with pytest.raises(TypeError, match="images: got"):
        Brightness()(samples)


def test_differentiable_where_given_tensors():
    for reward in (Brightness(), Sharpness(), ClassLogProb(linear_classifier(), 1)):
        images = noise(2, 1, 2 if isinstance(reward, ClassLogProb) else 8).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(images).sum(), images)
        assert gradient.abs().sum() > 0


# --- classifier -----------------------------------------------------------------------------------------------------


def linear_classifier():
    """Two classes of 2 x 2 images x in [-1, 1]: logits (sum x, 0)."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        model[1].bias.zero_()
    return model.eval()


def test_class_log_probability_is_the_log_softmax_of_the_logits():
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)  # sums of x: -4, 0, 4
    for label, sign in ((0, 1.0), (1, -1.0)):
        expected = [-math.log1p(math.exp(-sign * s)) for s in (-4.0, 0.0, 4.0)]
        reward = ClassLogProb(linear_classifier(), label)
        assert reward(images).tolist() == pytest.approx(expected, rel=1e-5)
        assert reward.name == f"class_log_prob({label})"
    files = [grey(np.full((2, 2), level)) for level in (0, 255)]
    assert ClassLogProb(linear_classifier(), 0)(files).tolist() == pytest.approx(
        [-math.log1p(math.exp(4.0)), -math.log1p(math.exp(-4.0))], rel=1e-5
    )


def test_classifier_mistakes_are_named():
    with pytest.raises(ValueError, match="training mode"):
        ClassLogProb(linear_classifier().train(), 0)
    with pytest.raises(ValueError, match="label: got 2, expected 0 to 1"):
        ClassLogProb(linear_classifier(), 2)(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="no folder 'nowhere'"):
        ClassLogProb("nowhere", 0)


# --- text and image -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of random weights with a vocabulary of words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clip")
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "a", "photo", "of", "zero", "nine"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 1},
        vision_config=sizes | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # wide enough that different texts and images differ
        parameter.data.normal_(0.0, 0.5, generator=generator)
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def test_clip_score_is_the_cosine_of_the_models_own_embeddings(clip_folder):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    files = [Image.fromarray(a) for a in noise(3, 3, 20).permute(0, 2, 3, 1).mul(255).to(torch.uint8).numpy()]
    model = CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()
    pictures = AutoImageProcessor.from_pretrained(clip_folder, local_files_only=True)(files, return_tensors="pt")
    for prompt in ("a photo of zero", "nine"):
        text = AutoTokenizer.from_pretrained(clip_folder, local_files_only=True)(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model(input_ids=text["input_ids"], pixel_values=pictures["pixel_values"])
        expected = output.logits_per_image[:, 0] / model.logit_scale.exp()
        scores = ClipScore(clip_folder, prompt)(files)
        torch.testing.assert_close(scores, expected.detach(), rtol=1e-5, atol=1e-6)
        assert scores.abs().max() <= 1 + 1e-6
        assert scores.std() > 1e-4


def test_clip_score_needs_a_local_folder():
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="on this machine"):
        ClipScore("openai/clip-vit-base-patch32", "a cat")


# --- molecules ------------------------------------------------------------------------------------------------------


def test_molecule_rewards_by_published_values():
    chem = pytest.importorskip("rdkit.Chem")
    # Wildman and Crippen 1999: carbon C1 0.1441 and hydrogen H1 0.1230 each; chain carbons of ethane are C1 too
    assert LogP()(["C", "CC"]).tolist() == pytest.approx([0.1441 + 4 * 0.123, 2 * 0.1441 + 6 * 0.123], abs=1e-9)
    aspirin = "CC(=O)Oc1ccccc1C(=O)O"
    assert QED()([aspirin]).item() == pytest.approx(0.55, abs=0.005)
    easy, hard = SyntheticAccessibility()(["c1ccccc1", "C1CC2CCC3(C2)C(C1)C1CC3C(O)C1(F)Br"]).tolist()
    assert easy == 1.0
    assert 0 <= hard < 0.7
    molecule = chem.MolFromSmiles(aspirin)
    for reward in (QED(), LogP(), SyntheticAccessibility()):
        values = reward([aspirin, "not a molecule", "", molecule, None])
        assert values.isnan().tolist() == [False, True, True, False, True]
        assert values[0] == values[3]


# --- sums -----------------------------------------------------------------------------------------------------------


def test_weighted_sum_algebra():
    images = noise(5)
    a, b = Brightness()(images).double(), Sharpness()(images).double()
    torch.testing.assert_close(WeightedSum([Brightness(), Sharpness()], [2.0, -0.5])(images), 2 * a - 0.5 * b)
    scaled = WeightedSum([Brightness(), Sharpness()], [2.0, -0.5], centers=[0.1, 3.0], scales=[4.0, 0.25])
    torch.testing.assert_close(scaled(images), 2 * (a - 0.1) / 4 - 0.5 * (b - 3.0) / 0.25)
    assert scaled.name == "2*brightness + -0.5*sharpness"
    assert {name: value.tolist() for name, value in scaled.parts(images).items()} == {
        "brightness": a.tolist(),
        "sharpness": b.tolist(),
    }


def test_normalisation_removes_units():
    images = noise(6)
    rewards = [Brightness(), lambda x: 1000 * Brightness()(x) - 7]
    term, same_term = (WeightedSum([reward], [1.0]).normalised_on(images) for reward in rewards)
    torch.testing.assert_close(term(images), same_term(images), rtol=1e-4, atol=1e-4)
    assert term(images).mean().item() == pytest.approx(0.0, abs=1e-12)
    assert term(images).std().item() == pytest.approx(1.0)
    alone = torch.cat([term(images[i : i + 1]) for i in range(6)])  # constants are fixed: no dependence on neighbours
    torch.testing.assert_close(alone, term(images))


def test_a_term_of_weight_zero_is_not_called_and_cannot_spoil_the_sum():
    impossible = Recorder(bad="1")
    assert WeightedSum([Recorder(), impossible], [1.0, 0.0])(["1", "2"]).tolist() == [1.0, 2.0]
    assert impossible.seen == []


def test_weighted_sum_keeps_gradients():
    images = noise(2).requires_grad_()
    (gradient,) = torch.autograd.grad(WeightedSum([Brightness(), JpegSize()], [3.0, 1.0])(images).sum(), images)
    torch.testing.assert_close(gradient.sum(dim=(1, 2, 3)), torch.full((2,), 3.0))


def test_weighted_sum_mistakes_are_named():
    with pytest.raises(ValueError, match="rewards: got none"):
        WeightedSum([], [])
    with pytest.raises(ValueError, match="weights: got 1 numbers, expected one a reward, 2"):
        WeightedSum([Brightness(), Sharpness()], [1.0])
    with pytest.raises(ValueError, match=r"scales: got \[0.0\], expected finite numbers > 0"):
        WeightedSum([Brightness()], [1.0], scales=[0.0])
    with pytest.raises(ValueError, match="reward brightness: standard deviation 0"):
        WeightedSum([Brightness()], [1.0]).normalised_on(torch.zeros(3, 1, 4, 4))
    with pytest.raises(ValueError, match="expected at least 2 to normalise on"):
        WeightedSum([Brightness()], [1.0]).normalised_on(torch.zeros(1, 1, 4, 4))
    with pytest.raises(WrongLength, match="reward <lambda>: returned 1 numbers for 2 samples"):
        WeightedSum([lambda x: [0.0]], [1.0])(["1", "2"])


def test_a_sum_by_names():
    total = WeightedSum.of({"brightness": 1.0, "jpeg_size": 0.5}, jpeg_size={"quality": 50})
    images = noise(2)
    torch.testing.assert_close(total(images), Brightness()(images).double() + 0.5 * JpegSize(50)(images))
    with pytest.raises(ValueError, match="expected names among"):
        WeightedSum.of({"brightness": 1.0}, jpeg_size={"quality": 50})


# --- executors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 2, 10])
def test_an_executor_keeps_the_order(chunk_size):
    """The first samples take longest, so that they finish last."""
    samples = [8, 7, 6, 5, 4, 3, 2]
    reward = Recorder(delay=0.005)
    with ThreadPoolExecutor(4) as executor:
        values = through(reward, executor, chunk_size=chunk_size)(samples)
    assert values.tolist() == [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    assert sorted(map(len, reward.seen), reverse=True)[0] == min(chunk_size, 7)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_a_failing_task_costs_only_its_sample(chunk_size):
    reward = Recorder(bad={4})
    with ThreadPoolExecutor(2) as executor:
        values = through(reward, executor, chunk_size=chunk_size)([1, 2, 3, 4, 5, 6])
        assert values.isnan().tolist() == [False, False, False, True, False, False]
        assert values[[0, 1, 2, 4, 5]].tolist() == [1.0, 2.0, 3.0, 5.0, 6.0]
        handed = [sample for chunk in reward.seen for sample in chunk]
        assert all(handed.count(sample) == 1 for sample in (1, 2, 3))  # of a task that worked: not repeated
        with pytest.raises(KeyError, match="cannot do"):
            through(Recorder(bad={1, 2}), executor, chunk_size=chunk_size)([1, 2])
        with pytest.raises(WrongLength, match="reward short"):
            through(named_short(), executor, chunk_size=2)([1, 2])


def named_short():
    def short(samples):
        return [0.0]

    return short


def test_built_in_rewards_can_be_sent_to_another_process():
    images = noise(2)
    total = WeightedSum([JpegSize(), Brightness()], [1.0, 1.0])
    for reward in (JpegSize(80), Brightness(), Sharpness(), total, ClassLogProb(linear_classifier(), 0)):
        given = noise(2, 1, 2) if isinstance(reward, ClassLogProb) else images
        assert torch.equal(pickle.loads(pickle.dumps(reward))(given), reward(given))


@pytest.mark.slow
def test_a_process_pool():
    images = [grey(image) for image in noise(3, 1)[:, 0].mul(255).round()]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert torch.equal(through(JpegSize(), executor)(images), JpegSize()(images))


# --- cache ----------------------------------------------------------------------------------------------------------


def test_cache_counts():
    inner = Recorder()
    reward = cached(inner)
    assert reward(["1", "2", "1", "1"]).tolist() == [1.0, 2.0, 1.0, 1.0]
    assert (reward.hits, reward.misses, inner.seen) == (2, 2, [["1", "2"]])
    assert reward(["2", "3"]).tolist() == [2.0, 3.0]
    assert (reward.hits, reward.misses, inner.seen[1:]) == (3, 3, [["3"]])
    assert reward(["3", "1"]).tolist() == [3.0, 1.0]
    assert (reward.hits, reward.misses, len(inner.seen), len(reward)) == (5, 3, 2, 3)
    assert reward([]).tolist() == []


def test_cache_forgets_the_least_recently_used():
    inner = Recorder()
    reward = cached(inner, max_size=2)
    for sample in ("1", "2", "1", "3", "1", "2"):
        reward([sample])
    assert [chunk[0] for chunk in inner.seen] == ["1", "2", "3", "2"]
    assert reward(["5", "6", "7", "5"]).tolist() == [5.0, 6.0, 7.0, 5.0]  # more at once than it keeps
    assert len(reward) == 2


def test_cache_by_content_of_images_and_tensors():
    images = noise(2)
    reward = cached(Brightness())
    both = reward(torch.cat([images, images.clone()]))
    torch.testing.assert_close(both, Brightness()(torch.cat([images, images])).double())
    assert (reward.hits, reward.misses) == (2, 2)
    files = [grey([[1, 2, 3]]), grey([[1, 2, 3]]), grey([[1], [2], [3]])]
    counted = cached(Brightness())
    counted(files)
    assert (counted.hits, counted.misses) == (1, 2)


def test_keys_tell_types_shapes_and_values_apart():
    zeros = torch.zeros(2, 3)
    samples = [
        zeros,
        zeros.double(),
        zeros.view(3, 2),
        zeros + 1e-7,
        zeros.numpy(),
        np.zeros((3, 2)),
        "0",
        b"0",
        0,
        0.0,
    ]
    samples += [grey(np.zeros((2, 3))), grey(np.zeros((3, 2))), grey(np.zeros((2, 3))).convert("RGB"), zeros.bfloat16()]
    assert len({content_key(sample) for sample in samples}) == len(samples)
    assert content_key(zeros.T) == content_key(zeros.T.clone().contiguous())
    assert content_key(torch.tensor(1.0)) == content_key(torch.tensor(1.0))
    with pytest.raises(TypeError, match="give cached"):
        content_key(object())


def test_what_raises_is_not_remembered():
    inner = Recorder(bad={"2"})
    reward = cached(inner)
    with pytest.raises(KeyError):
        reward(["1", "2"])
    inner.bad.clear()
    assert reward(["1", "2"]).tolist() == [1.0, 2.0]


def test_cached_executor_under_the_caller_of_rewards():
    """The stack as used: copies cost nothing, a bad sample is impossible, the rest is untouched."""
    inner = Recorder(bad={"9"})
    with ThreadPoolExecutor(2) as executor:
        calls = RewardCalls(cached(through(inner, executor)))
        with pytest.warns(NonFiniteWeightWarning, match="reward Recorder: 1 of 4 values"):
            values = calls(["1", "9", "1", "2"], 4)
    assert values.tolist() == [1.0, -math.inf, 1.0, 2.0]
    assert sorted(chunk[0] for chunk in inner.seen) == ["1", "2", "9"]


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3])
def test_a_sample_that_raises_is_impossible_counted_and_warned_of_once(chunk_size):
    calls = RewardCalls(Recorder(bad={"3"}), chunk_size)
    with pytest.warns(NonFiniteWeightWarning, match=r"1 of 4 values.*raised \(KeyError") as caught:
        assert calls(["1", "2", "3", "4"], 4).tolist() == [1.0, 2.0, -math.inf, 4.0]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calls(["3", "1"], 2).tolist() == [-math.inf, 1.0]
    assert (calls.n_invalid, calls.n_raised) == (2, 2)
    assert calls.calls == sum(len(chunk) for chunk in calls.reward.seen)  # repeated ones are paid for and counted


def test_a_reward_that_fails_for_all_is_named():
    def broken(samples):
        raise ZeroDivisionError("no such model")

    for chunk_size in (None, 1, 2):
        with pytest.raises(RewardError, match="reward broken raised for each of 3 samples: ZeroDivisionError: no such"):
            RewardCalls(broken, chunk_size)(["1", "2", "3"], 3)


def test_nan_and_plus_infinity_are_impossible_and_minus_infinity_is_an_answer():
    calls = RewardCalls(lambda samples: [math.nan, math.inf, -math.inf, 5.0])
    with pytest.warns(NonFiniteWeightWarning, match="2 of 4 values"):
        assert calls(torch.zeros(4, 1), 4).tolist() == [-math.inf] * 3 + [5.0]
    assert (calls.n_invalid, calls.n_raised, calls.calls) == (2, 0, 4)
    plain = RewardCalls(lambda samples: [-math.inf, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain(["1", "2"], 2).tolist() == [-math.inf, 1.0]


def test_an_answer_of_the_wrong_length_is_a_fault_of_the_reward():
    with pytest.raises(WrongLength, match=r"returned 1 numbers for 3 samples, expected one each"):
        RewardCalls(lambda samples: [1.0])(["1", "2", "3"], 3)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        RewardCalls(Recorder(), 0)


# --- by name --------------------------------------------------------------------------------------------------------


def plain_reward(samples):
    return [1.0] * len(samples)


def make_reward(level=2.0):
    return lambda samples: [level] * len(samples)


NOT_A_REWARD = 3


def test_rewards_by_name_and_path(monkeypatch):
    assert load_reward("jpeg_size", quality=40) == JpegSize(40)
    assert load_reward("brightness") == Brightness()
    monkeypatch.setitem(__import__("sys").modules, "some_rewards", __import__("sys").modules[__name__])
    assert load_reward("some_rewards:plain_reward") is plain_reward
    assert load_reward("some_rewards:make_reward", level=5.0)(["a"]) == [5.0]
    assert load_reward("some_rewards:Recorder")(["4"]) == [4.0]


def test_rewards_by_entry_point(monkeypatch):
    point = importlib.metadata.EntryPoint("mine", "feynkac.steering.rewards:Sharpness", "feynkac.rewards")
    broken = importlib.metadata.EntryPoint("broken", "no_such_module:x", "feynkac.rewards")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point, broken])
    assert load_reward("mine", bounds=(-1.0, 1.0)) == Sharpness(bounds=(-1.0, 1.0))
    assert {"mine", "broken", "jpeg_size", "qed"} <= set(available_rewards())
    with pytest.raises(ValueError, match=r"plugin 'broken': no_such_module:x cannot be imported"):
        load_reward("broken")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("jpg_size", {}, "did you mean 'jpeg_size'"),
        ("brightness", {"quality": 3}, "got an unexpected keyword argument 'quality'"),
        ("class_log_prob", {}, "missing a required argument: 'model'"),
        ("no_such_module:x", {}, "module 'no_such_module' cannot be imported"),
        ("math:no_such", {}, "math has no 'no_such'"),
        ("math:pi", {}, "got float, expected a callable"),
    ],
)
def test_unknown_rewards_and_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_reward(name, **options)


def test_every_built_in_name_loads():
    from feynkac.steering.rewards import registry

    for target in registry.BUILT_IN.values():
        module, _, attribute = target.partition(":")
        assert callable(getattr(__import__(f"feynkac.steering.rewards.{module}", fromlist=[attribute]), attribute))


def test_names_in_reports():
    import functools

    assert reward_name(plain_reward) == "plain_reward"
    assert reward_name(functools.partial(make_reward, level=1.0)) == "make_reward"
    assert reward_name(JpegSize(30)) == "jpeg_size(quality=30)"
    assert reward_name(cached(Brightness())) == "brightness"
    assert reward_name(Recorder()) == "Recorder"
