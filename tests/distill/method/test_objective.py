"""What a config's weights make of the losses."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from contract import LossWeights, TrainConfig
from distill.method import losses
from distill.method.objective import LOSSES, Features, LossBalance, Objective, compute_losses
from distill.training.loop import make_objective


def objective(adaptive_weights=False, **weights) -> Objective:
    nothing = dict.fromkeys(LossWeights.model_fields, 0)
    config = TrainConfig(
        data="d",
        teacher="t",
        captions="c.jsonl",
        losses={**nothing, **weights},
        adaptive_weights=adaptive_weights,
    )
    return make_objective(config)


@pytest.fixture
def batch() -> Features:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(count, 16, generator=generator) for count in (8, 8, 4, 8)]
    return Features(rows[0], rows[1], rows[2], torch.arange(8) % 4, rows[3])


def test_every_weight_has_its_loss_and_those_of_weight_0_are_not_measured(batch):
    assert LOSSES.keys() == LossWeights.model_fields.keys()
    every = compute_losses(batch, objective(**dict.fromkeys(LOSSES, 1)))
    assert list(every) == list(LossWeights.model_fields)
    assert compute_losses(batch, objective(cap=2)).keys() == {"cap"}


def test_each_name_means_its_formula(batch):
    found = compute_losses(batch, objective(mse_unnormalised=1, im_cst_distance=1, cap=1))
    s, t, c = batch.student, batch.teacher, batch.captions
    assert found["mse_unnormalised"].equal(losses.l_mse_unnormalised(s, t))
    assert found["im_cst_distance"].equal(losses.l_im_cst_distance(s, t))
    assert found["cap"].equal(losses.l_cap(s, c, batch.targets))


@pytest.mark.parametrize("vlprox_filter", [False, True])
def test_no_loss_waits_for_values_on_a_device(batch, vlprox_filter):
    """Tensors on the device `meta` have no values: whoever looks at one gets an error."""
    names = ("student", "teacher", "text", "targets", "captions")
    there = Features(*(getattr(batch, name).to("meta") for name in names))
    every = objective(adaptive_weights=True, **dict.fromkeys(LOSSES.keys() - {"cap"}, 1))
    every = replace(every, vlprox_filter=vlprox_filter)
    loss = LossBalance(every).to("meta")(compute_losses(there, every))
    assert loss.device.type == "meta"


def test_images_without_a_caption_are_left_out_of_l_cap_alone(batch):
    batch.captions[[1, 4]] = 0
    rest = [0, 2, 3, 5, 6, 7]
    expected = losses.l_cap(batch.student[rest], batch.captions[rest], batch.targets[rest])
    assert compute_losses(batch, objective(cap=1))["cap"].equal(expected)


def test_a_batch_without_captions_costs_nothing_and_can_be_differentiated(batch):
    batch.captions[:] = 0
    batch.student.requires_grad_()
    loss = compute_losses(batch, objective(cap=1))["cap"]
    loss.backward()
    assert loss == 0 and not batch.student.grad.any()


def test_a_weight_for_captions_without_captions_is_refused():
    with pytest.raises(ValidationError, match="set `captions` to their JSONL file"):
        TrainConfig(data="d", teacher="t", losses={"cap": 1})


def test_fixed_weights_are_those_of_the_config_and_nothing_is_learned(batch):
    settings = objective(cls=0.5, mse=2)
    balance, parts = LossBalance(settings), compute_losses(batch, settings)
    expected = 0.5 * parts["cls"].item() + 2 * parts["mse"].item()
    assert balance(parts).item() == pytest.approx(expected, rel=1e-6)
    assert not list(balance.parameters())


def test_learned_weights_begin_at_those_of_the_config():
    settings = objective(adaptive_weights=True, cls=0.5, mse=2, im_cst=1)
    assert LossBalance(settings).weights() == pytest.approx({"cls": 0.5, "mse": 2, "im_cst": 1})


def test_learned_weights_end_where_the_formula_has_its_minimum():
    settings = objective(adaptive_weights=True, cls=1, mse=1)
    balance = LossBalance(settings)
    values = {"cls": torch.tensor(4.0), "mse": torch.tensor(0.1)}
    optimiser = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        balance(values).backward()
        optimiser.step()
    # exp(−s) L + s / 2 is least at exp(−s) = 1 / (2 L); exp(−s) L / 2 + s / 2 at exp(−s) = 1 / L,
    # which is a weight of 1 / (2 L) too.
    assert balance.weights() == pytest.approx({"cls": 1 / 8, "mse": 5}, rel=1e-3)
    least = 0.5 + math.log(8) / 2 + 0.5 + math.log(0.1) / 2
    assert balance(values).item() == pytest.approx(least, rel=1e-4)
