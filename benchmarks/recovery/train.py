"""Train the benchmark's networks: ``python -m benchmarks.recovery.train resnet20 --epochs 6``.

One core trains all five within about an hour: SGD with Nesterov momentum, one-cycle learning rate, flips and shifts, and
the first 70 % of the steps on images shrunk to 16x16 (progressive resizing: 40 % of the work). A checkpoint is written
after each epoch and picked up again when the same command is run anew. A trained network can be given a further cycle,
all on images of full size, from half of the highest rate: ``--more EPOCHS``.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.recovery.data import Split, load, normalise
from benchmarks.recovery.files import CACHE, note, read
from benchmarks.recovery.nets import NETS, build
from benchmarks.recovery.pack import weights

#: Share of the steps on small images.
LOW_SHARE = 0.7

#: Epochs, highest learning rate and weight decay of each network.
RECIPES = {
    "resnet20": (15, 0.1, 5e-4),
    "mobilenetv2": (12, 0.08, 2e-4),
    "vgg16_slim": (10, 0.08, 5e-4),
    "densenet22": (8, 0.1, 5e-4),
    "resnet56": (8, 0.1, 5e-4),
    "densenet40": (8, 0.1, 5e-4),
}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped with probability 1/2 and shifted by up to 2 pixels; float32[n, c, h, w] to the same."""
    n, _, height, width = images.shape
    flip = torch.rand(n, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    out = torch.empty_like(images)
    dy, dx = torch.randint(0, 5, (2, n), generator=generator).tolist()
    for i in range(n):
        out[i] = padded[i, :, dy[i] : dy[i] + height, dx[i] : dx[i] + width]
    return out


@torch.inference_mode()
def accuracy(net: nn.Module, split: Split, batch: int = 500) -> float:
    """Share of the split's images that ``net``, in evaluation mode, gives their label."""
    net.eval()
    right = 0
    for start in range(0, len(split), batch):
        logits = net(torch.from_numpy(split.normalised(start, start + batch)))
        right += int((logits.argmax(1).numpy() == split.labels[start : start + batch]).sum())
    return right / len(split)


def train(
    name: str, data: tuple[Split, Split], epochs: int, folder: Path, *, more: bool = False, batch: int = 64, low_size: int = 16
) -> float:
    """Train one network, resuming from its checkpoint in ``folder``; the accuracy on the test split.

    Parameters
    ----------
    epochs
        Length of the one-cycle schedule.
    more
        Start from the trained network in ``folder`` instead of from random weights.
    low_size
        Height and width, in pixels, of the images in the first :data:`LOW_SHARE` of the steps.
    """
    train_split, test_split = data
    _, peak, decay = RECIPES[name]
    torch.manual_seed(0)
    if more:
        net, peak, low_share = restore(name, folder), peak / 2, 0.0
    else:
        net, low_share = build(name, train_split.images.shape[1], int(train_split.labels.max()) + 1), LOW_SHARE
    net = net.to(memory_format=torch.channels_last)
    plain = [p for p in net.parameters() if p.ndim == 1]
    weights = [p for p in net.parameters() if p.ndim > 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.9, nesterov=True)
    steps = len(train_split) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=epochs * steps, pct_start=0.25, cycle_momentum=False, div_factor=10
    )
    notes = folder / "training.json"
    before = read(notes).get(name, {}) if more else {}
    done = before.get("epochs", 0)
    checkpoint = folder / f"{name}{'.more' if more else ''}.checkpoint.pt"
    first, seconds = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["epochs"] == epochs:
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            first, seconds = state["epoch"], state["seconds"]
            print(f"{name}: going on after epoch {first}", flush=True)
        else:
            print(f"{name}: the checkpoint is of a run of {state['epochs']} epochs; starting anew", flush=True)
    labels = torch.from_numpy(train_split.labels)
    for epoch in range(first, epochs):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(done + epoch)
        order = torch.randperm(len(train_split), generator=generator)
        net.train()
        total = 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            x = augment(torch.from_numpy(normalise(train_split.images[chosen.numpy()])), generator)
            if epoch * steps + step < low_share * epochs * steps:
                x = F.interpolate(x, size=(low_size, low_size), mode="area")
            x = x.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step % 200 == 0:
                print(f"  {name} epoch {epoch + 1} step {step}/{steps} loss {loss.item():.3f}", flush=True)
            if not math.isfinite(total):
                raise RuntimeError(f"{name}: the loss diverged in epoch {epoch + 1}; lower the learning rate")
        seconds += time.monotonic() - started
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        partial = checkpoint.with_suffix(".part")
        torch.save({**state, "epoch": epoch + 1, "epochs": epochs, "seconds": seconds}, partial)
        partial.replace(checkpoint)
        print(f"{name}: epoch {epoch + 1}/{epochs} loss {total / steps:.3f} {seconds:.0f} s", flush=True)
    reached = accuracy(net, test_split)
    torch.save(net.state_dict(), folder / f"{name}.pt")
    entry = {
        "accuracy": reached, "epochs": done + epochs, "cycles": [*before.get("cycles", []), epochs],
        "seconds": round(before.get("seconds", 0) + seconds),
    }  # fmt: skip
    note(notes, name, entry)
    checkpoint.unlink(missing_ok=True)
    print(f"{name}: {100 * reached:.2f} % of {len(test_split)} test images after {done + epochs} epochs", flush=True)
    return reached


def restore(name: str, folder: Path = CACHE) -> nn.Module:
    """The trained network ``name`` (see :mod:`benchmarks.recovery.pack`), in evaluation mode."""
    state = weights(name, folder)
    first = next(value for value in state.values() if value.ndim == 4)
    net = build(name, first.shape[1], state["classifier.bias"].shape[0])
    lacking = net.load_state_dict(state, strict=False)
    unexpected = [key for key in lacking.missing_keys if not key.endswith("num_batches_tracked")] + lacking.unexpected_keys
    if unexpected:
        raise RuntimeError(f"the weights of {name} are another network's: {', '.join(unexpected)}")
    return net.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="+", choices=list(NETS))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--more", type=int, metavar="EPOCHS", help="a further cycle for networks that are trained")
    parser.add_argument("--force", action="store_true", help="train anew what is trained")
    parser.add_argument("--data", help="folder with Fashion-MNIST's idx files or CIFAR-10's batches")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    CACHE.mkdir(parents=True, exist_ok=True)
    data = load(options.data)
    for name in options.net:
        if options.more:
            train(name, data, options.more, CACHE, more=True)
        elif options.force or not (CACHE / f"{name}.pt").is_file():
            train(name, data, options.epochs or RECIPES[name][0], CACHE)
        else:
            print(f"{name} is trained: --force trains it anew, --more EPOCHS gives it a further cycle")


if __name__ == "__main__":
    main()
