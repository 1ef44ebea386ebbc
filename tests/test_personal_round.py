"""What the sites make their personal models from is the best federated model, also if later rounds made it worse."""

import torch

from fl_app.config_file import load_job
from fl_app.messages import MAIN, PERSONALISE
from fl_app.model_file import load_model
from fl_app.rehearsal import Rehearsal, rehearse
from fl_app.site import SiteSettings
from tests.federation import write_job, write_sites
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


def test_a_site_may_go_a_part_of_the_way_to_its_tuned_weights(tmp_path):
    """Half of the way lies in the middle between the federated model and the tuned one."""
    data = write_sites(tmp_path / "data", site_1=4, site_2=4)
    kept = {}
    for share in (0.5, 1.0):
        out = tmp_path / str(share)
        job = load_job(
            write_job(
                tmp_path / "job.yaml",
                training={"steps_per_round": 2, "precision": "fp32"},
                network={"channels": [4, 8]},
                federation={"rounds": 1},
                personal={"fine_tuning_steps": 12, "fine_tuning_rate": 1.0, "fine_tuning_shares": [share]},
            )
        )
        sites = {
            site: SiteSettings(data=data / site, threads=1, cache=tmp_path / "cache", output=out / site)
            for site in ("site-1", "site-2")
        }
        chosen = rehearse(job, sites, out / "out").personal.sites
        kept[share] = {
            site: load_model(out / site / "model.safetensors")[0]
            for site in sites
            if chosen[site].chosen == "federated tuned"
        }
    federated, _ = load_model(tmp_path / "0.5" / "out" / "model" / "best.safetensors")
    both = kept[0.5].keys() & kept[1.0].keys()
    assert both, "no site was better when tuned"
    for site in both:
        for name, value in kept[0.5][site].items():
            torch.testing.assert_close(value, (federated[name] + kept[1.0][site][name]) / 2)
        assert any(not torch.equal(value, federated[name]) for name, value in kept[0.5][site].items())
