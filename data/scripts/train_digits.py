"""Train the shipped digits models on scikit-learn's digits: class-conditional pixel diffusion, and a classifier.

    python data/scripts/train_digits.py [--output data] [--steps 3500] [--threads 1] [--grid samples.png]

Writes OUTPUT/digits_diffusion (a diffusers pipeline folder with card.json) and OUTPUT/digits_classifier. The 1797
images of 8 x 8 pixels are split, class by class, into 70 % that both models are trained on and 30 % that neither sees:
the reference of all measurements. An independent judge, scikit-learn's SVM, is trained on the 30 %. Takes 7 minutes of
one core of a 2024 server processor.

Data: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI repository, CC BY 4.0, as shipped
with scikit-learn.
"""

import argparse
import copy
import json
import math
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor
from tqdm import tqdm

from feynkac.steering.pixel_classifier import PixelClassifier
from feynkac.steering.pixel_pipeline import ClassConditionalPixelPipeline

SEED = 20261122
CLASSES = 10
SIZE = 8
BATCH = 64
DROP_CLASS = 0.3  # more than the usual 0.1: drawing without a class is what steering starts from
SAMPLING_STEPS = 50
PER_CLASS = 60


def split_digits(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (n, 1, 8, 8) in [-1, 1] and labels, held-out images and labels; 70 and 30 % of every class."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    labels = torch.tensor(data.target)
    train, held = [], []
    for digit in range(CLASSES):
        rows = torch.nonzero(labels == digit)[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        cut = round(0.7 * len(rows))
        train.append(rows[:cut])
        held.append(rows[cut:])
    a, b = torch.cat(train), torch.cat(held)
    return images[a], labels[a], images[b], labels[b]


def rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Learning rate: linear warm-up, then half a cosine to zero."""
    return peak * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


def train_classifier(images: Tensor, labels: Tensor, generator: torch.Generator, steps: int) -> PixelClassifier:
    """Cross-entropy with label smoothing on images shifted by up to a pixel, rescaled in contrast and noised."""
    model = PixelClassifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    for step in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        batch = torch.nn.functional.pad(images[rows], (1, 1, 1, 1), value=-1.0)
        top, left = torch.randint(3, (2,), generator=generator).tolist()
        batch = batch[:, :, top : top + SIZE, left : left + SIZE]
        contrast = 0.6 + 0.6 * torch.rand((64, 1, 1, 1), generator=generator)
        noise = 0.3 * torch.rand((64, 1, 1, 1), generator=generator)
        batch = (batch + 1) * contrast - 1 + noise * torch.randn(batch.shape, generator=generator)
        loss = torch.nn.functional.cross_entropy(model(batch), labels[rows], label_smoothing=0.05)
        optimizer.param_groups[0]["lr"] = rate(step, steps, 2e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def make_unet() -> UNet2DModel:
    """8 x 8 -> 4 x 4 -> 8 x 8, attention at 4 x 4; ten classes and the null class."""
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        dropout=0.1,
        num_class_embeds=CLASSES + 1,
    )


def train_diffusion(
    images: Tensor, labels: Tensor, schedule: DDPMScheduler, generator: torch.Generator, steps: int, batch_size: int
) -> tuple[UNet2DModel, float]:
    """The exponential moving average of a UNet trained for v-prediction, and its mean loss over the last tenth."""
    unet = make_unet().train()
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=1e-2)
    losses = []
    for step in tqdm(range(steps), desc="diffusion", mininterval=10):
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        clean = images[rows]
        noise = torch.randn(clean.shape, generator=generator)
        # One uniform draw, spread evenly: every batch covers all noise levels, which lowers the variance of the loss.
        offset = torch.rand(1, generator=generator)
        fraction = ((torch.arange(batch_size) + offset) / batch_size) % 1.0
        t = (fraction * schedule.config.num_train_timesteps).long()
        dropped = torch.rand(batch_size, generator=generator) < DROP_CLASS
        classes = torch.where(dropped, CLASSES, labels[rows])
        output = unet(schedule.add_noise(clean, noise, t), t, class_labels=classes).sample
        loss = (output - schedule.get_velocity(clean, noise, t)).square().mean()
        optimizer.param_groups[0]["lr"] = rate(step, steps, 1e-3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), unet.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        losses.append(loss.item())
    return average, float(np.mean(losses[-max(1, steps // 10) :]))


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features (n, d): |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))."""
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    # The trace of the root of C C' is the sum of the roots of its eigenvalues, which are real and not negative.
    product = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0.0).sqrt().sum()
    return float(gap + a.T.cov().trace() + b.T.cov().trace() - 2 * product)


def halves(generator: torch.Generator, real: Tensor, drawn: Tensor, repeats: int = 40) -> dict[str, dict[str, float]]:
    """Frechet distances over random halvings of ``real``: as many samples to one half, and half to half (the floor)."""
    size = len(real) // 2
    found: dict[str, list[float]] = {"samples": [], "real": []}
    for _ in range(repeats):
        order = torch.randperm(len(real), generator=generator)
        chosen = torch.randperm(len(drawn), generator=generator)[:size]
        found["samples"].append(frechet(drawn[chosen], real[order[:size]]))
        found["real"].append(frechet(real[order[size : 2 * size]], real[order[:size]]))
    return {name: {"mean": float(np.mean(v)), "std": float(np.std(v))} for name, v in found.items()}


def nearest(a: Tensor, b: Tensor) -> float:
    """Median over ``a`` of the root-mean-square difference of a pixel, in [0, 1], to the nearest of ``b``."""
    return float(torch.cdist(a.flatten(1) / 2, b.flatten(1) / 2).amin(dim=1).median() / SIZE)


class Judges:
    """The classifier, an SVM trained on the held-out images, and the real images that samples are compared with."""

    def __init__(self, classifier: PixelClassifier, parts: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        self.classifier, self.parts = classifier, parts
        self.svm = SVC(gamma=0.064, C=10.0).fit(parts[2].flatten(1).numpy(), parts[3].numpy())

    def by_svm(self, images: Tensor) -> Tensor:
        """(B,) classes."""
        return torch.from_numpy(self.svm.predict(images.flatten(1).numpy()))

    def own_accuracies(self) -> dict[str, float]:
        """Accuracy of each on real images that it was not trained on."""
        train, labels, held, held_labels = self.parts
        return {
            "classifier_on_held_out": share(self.classifier.predict(held) == held_labels),
            "svm_on_training_images": share(self.by_svm(train) == labels),
        }

    def measure(self, samples: Tensor, wanted: Tensor | None, generator: torch.Generator) -> dict[str, object]:
        """Class accuracy (where a class was asked for), Frechet distance with its floor, nearest neighbours."""
        train, _, held, _ = self.parts
        with torch.no_grad():
            real, drawn = self.classifier.features(held), self.classifier.features(samples)
        found: dict[str, object] = {"samples": len(samples)}
        if wanted is None:
            found["share_of_each_class_by_svm"] = (
                self.by_svm(samples).bincount(minlength=CLASSES) / len(samples)
            ).tolist()
        else:
            right = self.by_svm(samples) == wanted
            found["accuracy_by_classifier"] = share(self.classifier.predict(samples) == wanted)
            found["accuracy_by_svm"] = share(right)
            found["accuracy_by_svm_per_class"] = [share(right[wanted == digit]) for digit in range(CLASSES)]
        found["frechet_of_classifier_features"] = halves(generator, real, drawn)
        found["nearest_training_image"] = {"samples": nearest(samples, train), "held_out": nearest(held, train)}
        return found


def share(flags: Tensor) -> float:
    """Share of the true ones."""
    return flags.double().mean().item()


def draw(
    pipe: ClassConditionalPixelPipeline,
    label: int | None,
    n: int,
    guidance: float,
    eta: float,
    generator: torch.Generator,
) -> Tensor:
    """Images (n, 1, 8, 8) in [-1, 1] of a class, or of none, as the pipeline returns them."""
    images: Tensor = pipe(label, n, SAMPLING_STEPS, guidance, generator, eta, output_type="pt").images
    return images * 2 - 1


def quality(pipe: ClassConditionalPixelPipeline, judges: Judges, generator: torch.Generator) -> list[dict[str, object]]:
    """Measurements with and without noise in the sampler, guidance, and a class."""
    found: list[dict[str, object]] = []
    for guidance, eta, conditional in ((1.0, 1.0, True), (1.0, 0.0, True), (2.0, 1.0, True), (1.0, 1.0, False)):
        labels = range(CLASSES) if conditional else (None,) * CLASSES
        samples = torch.cat([draw(pipe, label, PER_CLASS, guidance, eta, generator) for label in labels])
        wanted = torch.arange(CLASSES).repeat_interleave(PER_CLASS) if conditional else None
        settings = {"class": "given" if conditional else "none", "guidance_scale": guidance, "eta": eta}
        found.append(settings | {"inference_steps": SAMPLING_STEPS} | judges.measure(samples, wanted, generator))
    return found


def grid(images: Tensor, columns: int, scale: int = 6) -> Image.Image:
    """Images (n, 1, 8, 8) in [0, 1] side by side, each pixel enlarged ``scale`` times."""
    rows = len(images) // columns
    page = torch.nn.functional.pad(images[: rows * columns, 0], (0, 1, 0, 1), value=0.5)
    page = page.view(rows, columns, SIZE + 1, SIZE + 1).permute(0, 2, 1, 3).reshape(rows * (SIZE + 1), -1)
    return Image.fromarray((page * 255).round().byte().numpy()).resize(
        (page.shape[1] * scale, page.shape[0] * scale), Image.Resampling.NEAREST
    )


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--classifier-steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--grid", type=Path, help="also draw ten samples of each class")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)  # initial parameters and dropout
    generator = torch.Generator().manual_seed(SEED)
    started = time.process_time()

    parts = split_digits(generator)
    classifier = train_classifier(parts[0], parts[1], generator, arguments.classifier_steps)
    judges = Judges(classifier, parts)
    print(f"judges: {judges.own_accuracies()} after {time.process_time() - started:.0f} s")

    settings = {"prediction_type": "v_prediction", "beta_schedule": "linear", "clip_sample": False}
    unet, loss = train_diffusion(parts[0], parts[1], DDPMScheduler(**settings), generator, arguments.steps, BATCH)
    seconds = time.process_time() - started
    pipe = ClassConditionalPixelPipeline(unet=unet, scheduler=DDIMScheduler(**settings, timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)

    folders = [arguments.output / name for name in ("digits_diffusion", "digits_classifier")]
    for folder, model in zip(folders, (pipe, classifier), strict=True):
        model.save_pretrained(folder)
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)
    card = {
        "data": "scikit-learn digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0), 8 x 8 pixels",
        "split": {"training": len(parts[0]), "held_out": len(parts[2])},
        "script": "data/scripts/train_digits.py",
        "seed": SEED,
        "versions": {name: version(name) for name in ("torch", "diffusers", "scikit-learn")},
        "parameters": {"unet": unet.num_parameters(), "classifier": classifier.num_parameters()},
        "training": {
            "steps": arguments.steps,
            "batch": BATCH,
            "final_loss": loss,
            "cpu_seconds": round(seconds),
            "threads": arguments.threads,
        },
        "judges": judges.own_accuracies(),
        "quality": quality(pipe, judges, generator),
    }
    (folders[0] / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))
    if arguments.grid:
        page = torch.cat([draw(pipe, digit, 10, 1.0, 1.0, generator) for digit in range(CLASSES)])
        grid(page / 2 + 0.5, 10).save(arguments.grid)


if __name__ == "__main__":
    main()
