"""The published scheduler as a plain PyTorch loop: what `solver.py` times beside `eenet`.

Source: Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet (2024), with
what it needs to run at all: gradients are reset, no 0·log 0, exit distributions by stick-breaking.
As there, one Adam with L2 in the gradient holds everything, batches have 512 samples, both losses
are formed at every step and take turns of ten epochs in counting, and the best epoch is kept. All
epochs are run; where the published stop, 100 epochs without improvement, would have ended the fit
is returned with it.
"""

import copy

import numpy as np
import torch

from eenet_jax.policies.problem import Problem

BATCH, TURN, PATIENCE = 512, 10, 100
LEARNING_RATE, L2 = 3e-5, 1e-2
DIVERGENCE_WEIGHT, COST_WEIGHT, COST_TOLERANCE = 1e-3, 1e-2, 0.1
FLOOR = 1e-12


class Exit(torch.nn.Module):
    """g, a linear score, and h, a small network that says what share leaves."""

    def __init__(self, inputs: int):
        super().__init__()
        self.score = torch.nn.Linear(inputs, 1, bias=False)
        self.share = torch.nn.Sequential(
            torch.nn.Linear(inputs, inputs // 2), torch.nn.Sigmoid(),
            torch.nn.Linear(inputs // 2, 1), torch.nn.Sigmoid(),
        )  # fmt: skip


class Scheduler(torch.nn.Module):
    """All exits; each sees its softmax, three measures, and the earlier exits' scores."""

    def __init__(self, exits: int, classes: int):
        super().__init__()
        self.exits = torch.nn.ModuleList([Exit(classes + 3 + k) for k in range(exits)])

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and exit assignments, [samples, exits] each."""
        scores, shares, staying = [], [], torch.ones(len(features[0]))
        for k, (each, seen) in enumerate(zip(self.exits, features, strict=True)):
            inputs = torch.cat([seen, *(score.detach()[:, None] for score in scores)], dim=1)
            scores.append(each.score(inputs)[:, 0].clamp(0, 1))
            last = k == len(features) - 1
            leaving = torch.ones_like(staying) if last else each.share(inputs)[:, 0]
            shares.append(staying * leaving)
            staying = staying * (1 - leaving)
        return torch.stack(scores, dim=1), torch.stack(shares, dim=1)


def losses(scores, shares, right, costs, budget) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the scores, of the exit assignments, and how far their cost is off, as a share."""
    weight = (shares / shares.sum(0)).detach()
    crossing = torch.nn.functional.binary_cross_entropy(scores, right, reduction="none")
    score_loss = (weight * crossing).sum() / scores.shape[1]
    target = scores.detach() + FLOOR
    target = target / target.sum(1, keepdim=True)
    divergence = (target * (target.log() - (shares + FLOOR).log())).mean()
    off = ((shares * costs).sum(1).mean() - budget).abs() / budget
    return score_loss, DIVERGENCE_WEIGHT * divergence + COST_WEIGHT * off, off


def fit(problem: Problem, budget: float, epochs: int) -> tuple[dict | None, int]:
    """One fit: the parameters of the best epoch, and after which epoch it might have stopped.

    Args:
      problem: Predictions and costs.
      budget: Mean cost; where no epoch comes close to it there is no best one.
      epochs: That are run.
    """
    torch.manual_seed(0)
    exits, samples, classes = problem.predictions.probs.shape
    max_entropy_vote = np.ascontiguousarray(problem.measures[..., [0, 1, 3]])
    seen = torch.cat([torch.tensor(problem.predictions.probs), torch.tensor(max_entropy_vote)], 2)
    right = torch.tensor(problem.correct.T.copy())
    costs = torch.tensor(problem.costs.costs)
    scheduler = Scheduler(exits, classes)
    adam = torch.optim.Adam(scheduler.parameters(), lr=LEARNING_RATE, weight_decay=L2)
    best, least, waited, stopped = None, float("inf"), 0, epochs
    for epoch in range(epochs):
        scores_turn = float((epoch // TURN) % 2 == 0)
        total, over = 0.0, 0.0
        for batch in torch.randperm(samples).split(BATCH):
            scores, shares = scheduler([each[batch] for each in seen])
            of_scores, of_shares, off = losses(scores, shares, right[batch], costs, budget)
            loss = scores_turn * of_scores + (1 - scores_turn) * of_shares
            adam.zero_grad()
            loss.backward()
            adam.step()
            total, over = total + loss.detach(), over + off.detach()
        if over * BATCH / samples >= COST_TOLERANCE:
            continue
        waited += 1
        if total < least:
            best, least, waited = copy.deepcopy(scheduler.state_dict()), total, 0
        if waited == PATIENCE:
            stopped = min(stopped, epoch + 1)
    return best, stopped
