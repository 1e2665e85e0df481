"""What a hospital's own code looks like: a linear model in torch, nothing of Steelyard in it.

The same code trains the four hospitals, the pooled model and the local-only models, so that a
difference between them comes from the data that each may see.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .heart import FEATURES, Patients

LOCAL_EPOCHS = 3
BATCH_PATIENTS = 16
LEARNING_RATE = 0.05


def build_net() -> nn.Linear:
    """Return the untrained model, the same on every machine: 62 parameters, all zero."""
    net = nn.Linear(FEATURES, 2)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return net


def fit(net: nn.Module, patients: Patients, *, epochs: int, seed: int) -> float:
    """Train `net` in place by SGD and return the last epoch's mean loss; repeatable by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = torch.from_numpy(patients.features), torch.from_numpy(patients.labels)
    weights = list(net.parameters())
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(patients), generator=generator).split(BATCH_PATIENTS):
            loss = nn.functional.cross_entropy(net(features[batch]), labels[batch])
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():  # what torch.optim.SGD does after importing a compiler: a second
                for weight, slope in zip(weights, slopes, strict=True):
                    weight.sub_(slope, alpha=LEARNING_RATE)
            total += loss.item() * len(batch)
    return total / len(patients)


def score(net: nn.Module, patients: Patients) -> float:
    """Return the share of `patients` that `net` labels rightly."""
    with torch.no_grad():
        predicted = net(torch.from_numpy(patients.features)).argmax(1).numpy()
    return float(np.mean(predicted == patients.labels))


def fit_pooled(parts: Sequence[Patients], *, rounds: int, seed: int) -> nn.Module:
    """Return the model that one site holding every row would train for as many epochs."""
    pooled = Patients(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    net = build_net()
    fit(net, pooled, epochs=rounds * LOCAL_EPOCHS, seed=seed)
    return net


def fit_alone(patients: Patients, *, rounds: int, seed: int) -> nn.Module:
    """Return the model that one hospital would train on its own rows only."""
    net = build_net()
    fit(net, patients, epochs=rounds * LOCAL_EPOCHS, seed=seed)
    return net


def fit_float_fedavg(parts: Sequence[Patients], *, rounds: int, seed: int) -> nn.Module:
    """Return FedAvg of the same training in float64, as an unverified server would compute it.

    Source: McMahan et al., arXiv:1602.05629, Algorithm 1.
    """
    net, total = build_net(), sum(len(part) for part in parts)
    for number in range(1, rounds + 1):
        base = {name: value.clone() for name, value in net.state_dict().items()}
        mean = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in base.items()}
        for index, part in enumerate(parts):
            net.load_state_dict(base)
            fit(net, part, epochs=LOCAL_EPOCHS, seed=compute_seed(seed, number, index))
            for name, value in net.state_dict().items():
                mean[name] += (value - base[name]).double() * (len(part) / total)
        net.load_state_dict({name: (base[name] + mean[name]).float() for name in base})
    return net


def compute_seed(seed: int, number: int, index: int) -> int:
    """Return the seed of hospital `index` in round `number`, the same on chain and in float."""
    return seed * 1_000_003 + number * 101 + index
