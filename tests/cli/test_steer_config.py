"""The command line of `feynkac steer`: options over a config or in its place, and every mistake named in one line."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers")

from feynkac.cli.errors import UserError
from feynkac.cli.main import app
from feynkac.cli.paths import resolve, shipped
from feynkac.cli.steer import job as steer_job
from feynkac.cli.steer.config import SteerConfig
from feynkac.cli.steer.options import _reward, steer_config
from feynkac.cli.steer.rewards import build_controls, reward_options
from feynkac.cli.steer.units import Condition, Unit, units
from feynkac.cli.validation import load_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CONFIG = """\
job: steer
name: small
model: {folder: data:digits_diffusion}
call:
  labels: [3]
  steps: 4
  eta: 1.0
rewards:
  - {name: brightness, scale: 10.0}
  - name: class_log_prob
    options: {model: data:digits_classifier, label: "{label}"}
steering:
  particles: 4
sampling: {seed: 1}
"""
DIGITS = ("steer", "--model", "data:digits_diffusion", "--label", "3", "--reward", "brightness")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def described(file=None, overrides=(), prompts=(), labels=(), rewards=(), scales=(), **single):
    options = {f"--{name.replace('_', '-')}": value for name, value in single.items()}
    return steer_config(file, overrides, single=options, prompts=prompts, labels=labels, rewards=rewards, scales=scales)


def complaint(*arguments: str) -> str:
    """The single line that a refused command prints; nothing was made."""
    before = set(Path().iterdir())
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    assert set(Path().iterdir()) == before
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_options_alone_make_a_config(workplace):
    config = described(
        model="data:digits_diffusion",
        labels=["3", "none"],
        rewards=["brightness", "class_log_prob:model=data:digits_classifier,label={label}"],
        scales=[2.0, 0.5],
        particles=5,
        eta=1.0,
    )
    assert config.name == "digits_diffusion"
    assert config.call.labels == (3, None)
    assert [(r.name, r.scale) for r in config.rewards] == [("brightness", 2.0), ("class_log_prob", 0.5)]
    assert config.rewards[1].options == {"model": "data:digits_classifier", "label": "{label}"}
    assert config.steering.resolved().potential == "difference"


def test_options_override_the_config(workplace):
    config = described(Path("config.yaml"), ["sampling.seed=9"], prompts=["a cat"], scales=[3.0, 4.0], steps=7)
    assert (config.call.prompts, config.call.labels, config.call.steps) == (("a cat",), (), 7)
    assert [r.scale for r in config.rewards] == [3.0, 4.0]
    assert config.sampling.seed == 9
    assert config.steering.particles == 4
    assert [r.name for r in described(Path("config.yaml"), rewards=["sharpness"]).rewards] == ["sharpness"]


def test_a_resolved_config_reads_back_the_same(workplace):
    import yaml

    config = described(Path("config.yaml"), labels=["none", "2"])
    Path("again.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    assert load_config(Path("again.yaml"), SteerConfig) == config


def test_shipped_configs_are_valid():
    names = [name for name in shipped() if name.startswith("configs/steer")]
    assert names
    for name in names:
        load_config(resolve(f"data:{name}", Path()), SteerConfig)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("brightness", "brightness", {}),
        ("package.module:attribute", "package.module:attribute", {}),
        ("package.module:a.b:n=1,word=x", "package.module:a.b", {"n": 1, "word": "x"}),
        ("jpeg_size:quality=80", "jpeg_size", {"quality": 80}),
        ("clip_score:folder=a/b,prompt=red, blue", "clip_score", {"folder": "a/b", "prompt": "red, blue"}),
        ("a:list=[1, 2],on=true,p={prompt}", "a", {"list": [1, 2], "on": True, "p": "{prompt}"}),
    ],
)
def test_rewards_on_the_command_line(text, name, options):
    assert _reward(text) == {"name": name, "options": options}


def test_paths_of_rewards_are_made_absolute(workplace):
    (workplace / "models" / "clip").mkdir(parents=True)
    config = described(model="data:digits_diffusion", rewards=["clip_score:folder=models/clip,prompt=this/or that"])
    assert config.rewards[0].options == {"folder": str(workplace / "models" / "clip"), "prompt": "this/or that"}


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--reward", "brightness"), ["--model: missing"]),
        (("--model", "data:digits_diffusion"), ["--reward: missing"]),
        (("--model", "nowhere", "--reward", "brightness"), ["--model: model.folder = 'nowhere'", "there is no"]),
        (("--model", ".", "--reward", "brightness"), ["no model_index.json", "save_pretrained"]),
        (("--model", "data:digits_diffusion", "--reward", "brightnes"), ["rewards[0]", "did you mean 'brightness'"]),
        (("--model", "data:digits_diffusion", "--reward", ":x"), ["--reward :x", "expected NAME"]),
    ],
)
def test_what_is_missing_or_unknown_is_named(workplace, options, parts):
    line = complaint("steer", *options)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((), ["model.scheduler = 'DDIMScheduler'", "adds no noise", "--transition stochastic", "--eta"]),
        (("--scale", "-1"), ["--scale: rewards[0].scale = -1.0", "from 0 on", "negate the reward"]),
        (("--scale", "1", "--scale", "2"), ["--scale: given 2 times for 1 rewards"]),
        (("--particles", "0"), ["--particles: steering.particles = 0", "greater than 0"]),
        (("--method", "svdd"), ["--method: steering.method = 'svdd'", "fk or soft-value or best-of-n"]),
        (("--candidates", "2"), ["candidates is for method soft-value, got method fk"]),
        (("--method", "soft-value", "--potential", "max"), ["potential is for method fk"]),
        (("--method", "best-of-n", "--final", "best"), ["final best is for methods fk and soft-value"]),
        (("--method", "soft-value", "--scale", "0"), ["soft-value needs scales above zero"]),
        (("--resampler", "best"), ["--resampler: steering.resampler = 'best'", "systematic"]),
        (("--size", "64"), ["--size: call.size = '64'", "HEIGHTxWIDTH"]),
        (("--eta", "1", "--size", "64x64"), ["ClassConditionalPixelPipeline takes no height"]),
        (("--eta", "2"), ["--eta: call.eta = 2.0", "less than or equal to 1"]),
        (("--eta", "1", "--negative-prompt", "x"), ["takes no negative_prompt"]),
        (("--eta", "1", "--scheduler", "Nope"), ["model.scheduler = 'Nope'", "not known", "DDPMScheduler"]),
        (("--scheduler", "FlowMatchHeunDiscreteScheduler"), ["cannot take the place of DDIMScheduler"]),
        (("--eta", "1", "--scheduler", "EulerAncestralDiscreteScheduler"), ["call.eta = 1.0", "takes no eta"]),
        (("--scheduler", "HeunDiscreteScheduler", "--transition", "stochastic"), ["one evaluation a move"]),
        (("--device", "cuda:99"), ["model.device = 'cuda:99'", "CUDA devices here"]),
        (("--dtype", "int8"), ["--dtype: model.dtype = 'int8'", "float32"]),
        (("--label", "3"), ["3 is given twice", "sampling.seeds"]),
        (("--label", "x"), ["--label x", "class number"]),
        (("--prompt", "a cat"), ["needs prompts or labels, not both"]),
        (("--reward", "clip_score:folder=."), ["rewards[1] = 'clip_score'", "asks for the prompt"]),
        (("--reward", "jpeg_size:quality=200"), ["rewards[1] = 'jpeg_size'", "quality: got 200"]),
        (("--reward", "jpeg_size:size=2"), ["rewards[1] = 'jpeg_size'", "unexpected keyword argument 'size'"]),
        (("--set", "call.guidance=2"), ["call.guidance: unknown key", "did you mean 'guidance_scale'"]),
        (("--eta", "1", "--set", "call.arguments.strength=0.5"), ["takes no strength"]),
    ],
)
def test_mistakes_are_named(workplace, options, parts):
    line = complaint(*DIGITS, *options)
    assert all(part in line for part in parts), line


def test_conditions_must_fit_the_pipeline(workplace):
    model = ("steer", "--model", "data:digits_diffusion", "--reward", "brightness", "--eta", "1")
    assert "takes no prompt" in complaint(*model, "--prompt", "a cat")
    assert "needs a label; give it with --label" in complaint(*model)
    asked = "class_log_prob:model=data:digits_classifier,label={label}"
    assert "label none has none" in complaint(*model, "--label", "1", "--label", "none", "--reward", asked)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("scale: 10.0", "scale: -10.0", ["line 9", "rewards[0].scale = -10.0", "from 0 on"]),
        ("particles: 4", "partices: 4", ["line 13", "steering.partices", "did you mean 'particles'"]),
        ("labels: [3]", "labels: [-3]", ["line 5", "call.labels[0] = -3"]),
        ("data:digits_diffusion", "data:digit_diffusion", ["line 3", "did you mean data:digits_diffusion"]),
    ],
)
def test_mistakes_in_files_are_named_with_their_line(workplace, old, new, parts):
    assert old in CONFIG
    (workplace / "config.yaml").write_text(CONFIG.replace(old, new))
    line = complaint("steer", "config.yaml")
    assert all(part in line for part in parts), line


def test_bad_input_fails_before_the_model_is_loaded(workplace, monkeypatch):
    monkeypatch.setattr(steer_job, "load_model", lambda config: pytest.fail("the model was loaded"))
    Path("there").mkdir()
    assert "exists already" in complaint(*DIGITS, "--eta", "1", "-o", "there")
    assert "did you mean" in complaint(*DIGITS[:-1], "sharpnes")


def test_what_the_pipeline_refuses_leaves_no_folder(workplace, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    many = complaint("steer", *DIGITS[1:3], "--label", "33", *DIGITS[5:], "--eta", "1", "--steps", "2", "-o", "out")
    assert "class_labels: got 33, expected an integer in [0, 10)" in many
    assert not Path("out").exists()


# --- units ----------------------------------------------------------------------------------------------------------


def test_a_units_streams_are_its_own():
    asked = [Unit(Condition(*c), seed) for c in (("prompt", "a"), ("prompt", "b"), ("label", 1)) for seed in (0, 1)]
    seeds = [unit.stream(purpose) for unit in asked for purpose in ("steering", "pipeline")]
    assert len(set(seeds)) == len(seeds)
    assert Unit(Condition("prompt", "a"), 1).stream("steering") == asked[1].stream("steering")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_names_of_folders_tell_conditions_apart(workplace):
    texts = ["A cat!", "a cat", "../../etc", "", "猫", "x" * 300]
    names = [Condition("prompt", text).slug for text in texts]
    assert len(set(names)) == len(texts)
    assert all(name.replace("-", "").isalnum() and len(name) < 60 for name in names)
    config = described(Path("config.yaml"), ["sampling.seeds=2"], labels=["4", "none"])
    assert [unit.name for unit in units(config)] == [
        f"label-{label}/seed-{s}" for label in ("4", "none") for s in (1, 2)
    ]


def test_rewards_are_asked_about_their_own_prompt(workplace):
    (workplace / "clip").mkdir()
    config = described(
        model="data:digits_diffusion",
        prompts=["a cat", "a dog"],
        rewards=["clip_score:folder=clip", "some:other:text=not {prompt}"],
    )
    found = [reward_options(config, Condition("prompt", text)) for text in config.call.prompts]
    assert [options[0]["prompt"] for options in found] == ["a cat", "a dog"]
    assert [options[1]["text"] for options in found] == ["not a cat", "not a dog"]
    with pytest.raises(UserError, match="asks for the prompt"):
        reward_options(config, Condition("label", 3))


def test_controls_have_the_target_that_was_asked_for(workplace):
    def reward(images):
        return torch.zeros(len(images))

    one = {"model": "data:digits_diffusion", "rewards": ["brightness"], "scales": [3.0]}
    soft = described(**one, method="soft-value", temperature=0.5)
    soft = soft.model_copy(update={"steering": soft.steering.resolved()})
    (control,) = build_controls(soft, [reward])
    assert control.temperature == pytest.approx(0.5 / 3.0)  # exp(3 r / 0.5)
    assert control.candidates == 4
    fk = described(**one, potential="max")
    (control,) = build_controls(fk, [reward])
    assert (control.scale, control.potential) == (3.0, "max")
