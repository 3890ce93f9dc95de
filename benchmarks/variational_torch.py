"""A variational step of the convolutional classifier as one writes it in PyTorch, in several plain ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


FORMS = ("loop", "loop, channels last", "grouped", "grouped, channels last", "vmap")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_torch(value: Any) -> torch.Tensor:
    """Weights as PyTorch lays them out: (out, in, height, width) or (out, in), from (..., in, out)."""
    array = torch.from_numpy(np.array(value))
    return (array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array).contiguous().to(DEVICE)


class TorchStep:
    """A mean-field Gaussian q(weights) of a net of two convolutions, and the steps of SGD with Nesterov momentum on -ELBO/N.

    Args:
        mean: means by site.
        log_scale: log standard deviations by site.
        prior: standard deviations of the Gaussian prior by site, in the order of the net.
        data: images (rows, height, width, 1) and labels.
        total: the number N of training images.
        draws: weight samples per step.
        form: one of `FORMS`.
    """

    def __init__(
        self, mean: Any, log_scale: Any, prior: dict[str, float], data: Any, total: int, draws: int, form: str, rate: float
    ) -> None:
        self.names, self.draws, self.total = list(prior), draws, total
        self.last = form.endswith("channels last")
        self.form = form.split(",")[0]
        self.mean = [as_torch(mean[name]).requires_grad_() for name in self.names]
        self.log_scale = [as_torch(log_scale[name]).requires_grad_() for name in self.names]
        self.prior = [prior[name] for name in self.names]
        self.x, self.y = (torch.from_numpy(np.array(part)).to(DEVICE) for part in data)
        self.x, self.y = self.x.permute(0, 3, 1, 2), self.y.long()
        self.x = self.x.contiguous(memory_format=torch.channels_last) if self.last else self.x.contiguous()
        self.optimizer = torch.optim.SGD(self.mean + self.log_scale, lr=rate, momentum=0.9, nesterov=True)

    def loss(self, noise: list[torch.Tensor]) -> torch.Tensor:
        """-ELBO/N with these standard normals, per site (draws, ...)."""
        scale = [s.exp() for s in self.log_scale]
        if self.form == "loop":
            each = [
                F.cross_entropy(self.net([m + s * e[i] for m, s, e in zip(self.mean, scale, noise, strict=True)]), self.y)
                for i in range(self.draws)
            ]
            mean_loss = torch.stack(each).mean()
        else:
            weights = [m + s * e for m, s, e in zip(self.mean, scale, noise, strict=True)]
            logits = self.grouped(weights) if self.form == "grouped" else torch.func.vmap(lambda *w: self.net(w))(*weights)
            mean_loss = F.cross_entropy(logits.flatten(0, 1), self.y.repeat(self.draws))
        kl = sum(
            (math.log(p) - torch.log(s) + (s**2 + m**2) / (2 * p**2) - 0.5).sum()
            for m, s, p in zip(self.mean, scale, self.prior, strict=True)
        )
        return mean_loss + kl / self.total

    def net(self, w: Any) -> torch.Tensor:
        """Logits (rows, classes) with one draw of the weights. The mean over pixels comes before the readout, which is linear."""
        first, second = w[0], w[2]
        if self.last:
            first, second = (v.contiguous(memory_format=torch.channels_last) for v in (first, second))
        h = F.max_pool2d(F.relu(F.conv2d(self.x, first, w[1], padding=1)), 2)
        h = F.relu(F.conv2d(h, second, w[3], padding=1))
        return F.linear(h.mean((2, 3)), w[4], w[5])

    def grouped(self, w: Any) -> torch.Tensor:
        """Logits (draws, rows, classes), all draws in one grouped convolution per layer."""
        h = F.max_pool2d(F.relu(F.conv2d(self.x, w[0].flatten(0, 1), w[1].flatten(), padding=1)), 2)
        h = F.relu(F.conv2d(h, w[2].flatten(0, 1), w[3].flatten(), padding=1, groups=self.draws))
        h = h.mean((2, 3)).reshape(len(self.x), self.draws, -1).transpose(0, 1)
        return torch.baddbmm(w[5][:, None], h, w[4].transpose(1, 2))

    def gradient(self, noise: dict[str, Any]) -> tuple[float, dict[str, Any], dict[str, Any]]:
        """The loss with given noise by site, and its gradients in the means and in the log scales as PyTorch lays them out."""
        self.optimizer.zero_grad()
        own = [torch.stack([as_torch(draw) for draw in np.asarray(noise[name])]) for name in self.names]
        loss = self.loss(own)
        loss.backward()
        sides = [
            {n: p.grad.numpy(force=True).copy() for n, p in zip(self.names, ps, strict=True)}
            for ps in (self.mean, self.log_scale)
        ]
        return float(loss.detach()), *sides

    def step(self) -> None:
        """One step with fresh noise."""
        self.optimizer.zero_grad()
        self.loss([torch.randn(self.draws, *m.shape, device=DEVICE) for m in self.mean]).backward()
        self.optimizer.step()


def steps(step: TorchStep, count: int) -> Callable[[], None]:
    """`count` steps."""

    def run() -> None:
        for _ in range(count):
            step.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run
