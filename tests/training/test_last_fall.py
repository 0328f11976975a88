"""The part of the loss's fall in the last tenth of the epochs."""

import pytest

from raysweep.training.loop import last_fall


def test_reference_values():
    assert last_fall([9, 5, 3, 2, 1.5, 1]) == {"pretrain/last_fall": 0.0625}
    linear = [float(value) for value in range(40, 0, -1)]
    assert last_fall(linear)["pretrain/last_fall"] == pytest.approx(4 / 39)
    levelled = [2.0**-epoch for epoch in range(30)]
    assert last_fall(levelled)["pretrain/last_fall"] < 1e-6


@pytest.mark.parametrize("losses", [[], [5, 4, 3, 2], [1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]])
def test_too_few_epochs_or_no_fall_give_no_metric(losses):
    assert last_fall(losses) == {}
