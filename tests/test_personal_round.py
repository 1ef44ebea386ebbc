"""What the sites make their personal models from is the best federated model, also if later rounds made it worse."""

import torch

from fl_app.config_file import load_job
from fl_app.messages import MAIN, PERSONALISE
from fl_app.model_file import load_model
from fl_app.rehearsal import Rehearsal, rehearse
from tests.federation import write_job
from tests.light_sites import LightSite


class Worsening:
    """A channel on which every round's model scores worse than the one before; it remembers what the sites get last."""

    def __init__(self, channel):
        self._channel, self.last = channel, {}

    def ask(self, task, payloads, exchange, answer):
        def take(site, values, report):
            if report.get("received"):
                report["received"]["metrics"] = {"val_dice": 1 / (1 + payloads[site].facts["round"])}
            return answer(site, values, report)

        if task == PERSONALISE:
            self.last = payloads
        self._channel.ask(task, payloads, exchange, take)


def test_personal_models_begin_from_the_best_round(tmp_path):
    job = load_job(
        write_job(
            tmp_path / "job.yaml",
            network={"channels": [2, 4]},
            federation={"rounds": 3, "transfer_bits": 32},
            personal={"fine_tuning_steps": 1},
        )
    )
    names = ["site-1", "site-2"]
    channel = Worsening(Rehearsal({name: LightSite(job, name) for name in names}))
    result = rehearse(job, dict.fromkeys(names), tmp_path / "out", channel)
    best, info = load_model(tmp_path / "out" / "model" / "best.safetensors")
    assert result.final.round == info.round < 3
    for payload in channel.last.values():
        assert payload.facts["networks"][MAIN]["round"] == info.round
        assert payload.values and all(torch.equal(value, best[name[5:]]) for name, value in payload.values.items())
