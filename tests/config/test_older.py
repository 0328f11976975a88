"""Settings under the names that older versions gave them."""

import yaml

from raysweep import space
from raysweep.config import with_present_names


def test_a_grid_of_probes_under_its_old_name_is_the_same_sweep():
    old = "base: {probe_bank: 'lr=0.0001+0.001,layer=trunk+embedding'}"
    new = "base: {probe_grid: {lr: [1e-4, 1e-3], layer: [trunk, embedding]}}"
    sweeps = [space.build(yaml.safe_load(text), {}, "s.yaml") for text in (old, new)]
    assert sweeps[0].trials == sweeps[1].trials


def test_old_grids_that_were_swept_are_the_same_sweep():
    old = {"search": {"probe_bank": {"grid": [None, "lr=0.1+0.2"]}}}
    new = {"search": {"probe_grid": [None, {"lr": [0.1, 0.2]}]}}
    assert space.build(old, {}, "s.yaml").trials == space.build(new, {}, "s.yaml").trials


def test_recorded_settings_get_the_text_that_settings_have_today():
    recorded = with_present_names({"probe_bank": "lr=0.0001+0.001,weight_decay=0.0", "alpha": 0.1})
    (trial,) = space.build({"base": {"probe_grid": {"lr": [1e-4, 1e-3], "weight_decay": [0]}}}, {}, "s.yaml").trials
    assert recorded == {"probe_grid": trial.settings.probe_grid, "alpha": 0.1}
    assert with_present_names({"probe_bank": None}) == {"probe_grid": None}
