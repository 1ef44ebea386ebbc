"""Models in few bits: small, unbiased over time, the same at every site, and never decoded from what is not held."""

import json
import tracemalloc
import zlib

import pytest
import torch

from clients.incoming import Incoming
from fl_app.config_file import load_job
from fl_app.errors import FederationError
from fl_app.ledger import TRAIL, digest
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.result import read_result
from fl_app.site import SiteSettings
from fl_app.transfer import ModelNotHeldError, Rounding, decode
from server.outgoing import Outgoing
from tests.federation import fedspleen, write_job, write_sites
from tests.test_rehearsal import Ending, Killed, Returning, assert_same, models, settings

SHAPES = {"weight": (7, 5, 3, 3, 3), "bias": (7,), "scale": ()}
SHARE = {8: 0.26, 3: 0.08}  # of float32's bytes


def values(seed, size=1.0, shapes=SHAPES):
    chance = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=chance) for name, shape in shapes.items()}


@pytest.mark.parametrize("bits", [8, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1), (255, 1), (16, 16), (257, 1), (8, 3, 5, 5)])
def test_a_value_comes_back_within_half_a_step_of_its_block(bits, shape):
    sent = {"v": values(0, shapes={"v": shape})["v"]}
    back = decode(Rounding(bits).encode(sent), {"v": shape}, bits)["v"]
    assert back.shape == shape and back.dtype == torch.float32
    flat, got = sent["v"].flatten(), back.flatten()
    for start in range(0, len(flat), 256):
        block = flat[start : start + 256]
        # the scale has 8 bits of its own
        half = block.abs().max() / (2 ** (bits - 1) - 1) * (0.5 + 2**-8 * 2 ** (bits - 1))
        assert (block - got[start : start + 256]).abs().max() <= half


@pytest.mark.parametrize("bits", [8, 3])
def test_a_model_takes_the_promised_share_of_the_bytes(bits):
    sent = values(0, shapes={"a": (64, 32, 3, 3, 3), "b": (64,)})
    packed = Rounding(bits).encode(sent)
    size = {name: value.numel() * value.element_size() for name, value in packed.items()}
    assert sum(size.values()) <= SHARE[bits] * sum(4 * value.numel() for value in sent.values())


@pytest.mark.parametrize("bits", [8, 3])
def test_what_is_rounded_off_comes_with_the_next_ones(bits):
    """The sum of what arrives stays within one step of the sum of what was meant, however many rounds there are."""
    rounding, meant, arrived = Rounding(bits), torch.zeros(9, 30), torch.zeros(9, 30)
    for number in range(60):
        change = values(number, shapes={"v": (9, 30)})["v"] + 0.01  # far below half a step of 3 bits
        meant += change
        arrived += decode(rounding.encode({"v": change}), {"v": (9, 30)}, bits)["v"]
    assert (meant - arrived).abs().max() < 6 / (2 ** (bits - 1) - 1)
    assert torch.allclose(meant - arrived, rounding.rest["v"], atol=1e-4)


def test_biases_and_statistics_travel_exactly():
    sent = values(1)
    packed = Rounding(3).encode(sent)
    assert torch.equal(packed["bias"], sent["bias"]) and torch.equal(packed["scale"], sent["scale"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_update_is_seen_as_such_and_not_carried_over(bad):
    rounding, sent = Rounding(8), values(1)
    sent["weight"][0, 0, 0, 0, 0] = bad
    assert not decode(rounding.encode(sent), SHAPES, 8)["weight"].isfinite().all()
    assert rounding.rest["weight"].isfinite().all()


def changed(kind, packed):
    longer = torch.cat([packed, packed[-1:]])
    return {
        "shorter": packed[:-1],
        "longer": longer,
        "scales alone": packed[:8],
        "another code": torch.cat([packed[:8], torch.full_like(packed[8:], 255)]),
        "a few bytes": packed[:5],
        "nothing": packed[:0],
        "a square": longer[: len(longer) // 2 * 2].view(2, -1),
        "floats": torch.zeros(7, 5, 3, 3, 3),
        "no tensor": None,
    }[kind]


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize(
    "kind",
    ["shorter", "longer", "scales alone", "another code", "a few bytes", "nothing", "a square", "floats", "no tensor"],
)
def test_bytes_that_do_not_fit_the_model_are_refused(kind, bits):
    packed = Rounding(bits).encode(values(1))
    with pytest.raises(FederationError, match=rf"weight is not 945 values of {bits} bits"):
        decode({**packed, "weight": changed(kind, packed["weight"])}, SHAPES, bits)


def test_a_stream_that_would_unpack_to_far_more_is_refused_at_once():
    stream = zlib.compressobj(wbits=-15)
    bomb = stream.compress(bytes(200_000_000)) + stream.flush()
    sent = torch.cat([torch.zeros(8, dtype=torch.uint8), torch.frombuffer(bytearray(bomb), dtype=torch.uint8)])
    tracemalloc.start()
    with pytest.raises(FederationError, match="weight is not 945 values"):
        decode({"weight": sent}, SHAPES, 3)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_site_follows_the_servers_model_to_the_bit_and_asks_for_it_whole_when_it_has_missed_one():
    model, held = values(0), ("weight", "bias", "scale")
    sent, asked = Outgoing(3, True, {}), []
    faithful, absent = Incoming(3, dict(model)), Incoming(3, dict(model))
    for number in range(4):
        payload = sent.payload(model, held, (), {"own": []}, asked.append)
        got = faithful.model(payload.values, payload.facts)
        assert all(torch.equal(got[name], model[name]) for name in model)
        if number in (0, 3):
            if number:
                with pytest.raises(ModelNotHeldError):
                    absent.model(payload.values, payload.facts)
                payload = payload.whole("absent")
            assert digest(absent.model(payload.values, payload.facts)) == digest(model)
        model = sent.settle(model, {name: value + values(number + 5, 0.01)[name] for name, value in model.items()})
    assert asked == ["absent"]


def test_a_site_refuses_a_model_that_is_not_the_servers():
    model = values(0)
    sent = Outgoing(8, True, {})
    site = Incoming(8, dict(model))
    payload = sent.payload(model, tuple(SHAPES), (), {"own": []}, print)
    site.model(payload.values, payload.facts)
    model = sent.settle(model, values(1))
    payload = sent.payload(model, tuple(SHAPES), (), {"own": []}, print)
    tampered = {**payload.values, "bias": payload.values["bias"] + 1}
    with pytest.raises(ModelNotHeldError):
        site.model(tampered, payload.facts)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("data"), site_1=4, site_2=5)


@pytest.fixture
def job(tmp_path):
    path = write_job(
        tmp_path / "job.yaml",
        training={"steps_per_round": 1, "precision": "fp32"},
        network={"channels": [2, 4], "normalisation": "batch"},
        federation={"rounds": 3, "transfer_bits": 3},
    )
    return load_job(path)


def test_a_job_in_few_bits_survives_restarts_of_all_sides_with_the_same_weights(data, job, tmp_path):
    whole = rehearse(job, settings(data, tmp_path / "whole"), tmp_path / "whole" / "out")
    for number, before in ((2, True), (3, False)):
        sites = settings(data, tmp_path / f"{number}")
        end = Ending(rehearsal_channel(job, sites), "train", number, before)
        with pytest.raises(Killed):
            rehearse(job, sites, tmp_path / f"{number}" / "out", end)
        rehearse(job, sites, tmp_path / f"{number}" / "out")
        assert_same(models(tmp_path / f"{number}" / "out"), models(tmp_path / "whole" / "out"))
    sites = settings(data, tmp_path / "site")
    result = rehearse(job, sites, tmp_path / "site" / "out", Returning(job, sites, 3))
    assert_same(models(tmp_path / "site" / "out"), models(tmp_path / "whole" / "out"))
    for site in sites:
        sizes = [done.sites[site].bytes_received for done in result.rounds]
        never_missed = [done.sites[site].bytes_received for done in whole.rounds]
        # nothing in the first round, as sites build that model; whole beside the change after the new start
        assert sizes == [0, never_missed[1], never_missed[2] + result.exchanged_bytes] and never_missed[0] == 0
        told = never_missed[1:] + [done.sites[site].bytes_sent for done in result.rounds]
        assert 0 < max(told) < 1.1 * min(told) < 0.2 * result.exchanged_bytes  # the code's length varies a little


def test_the_trails_of_both_sides_tell_of_what_travelled(data, job, tmp_path):
    sites = settings(data, tmp_path)
    rehearse(job, sites, tmp_path / "out", Returning(job, sites, 3))

    def lines(folder, event):
        told = [json.loads(line) for line in (folder / TRAIL).read_text().splitlines()]
        return [each.get("sha256_of_values") for each in told if each["event"] == event and each["task"] == "train"]

    for site in ("site-1", "site-2"):
        received = lines(tmp_path / site, "received")
        assert set(received) <= set(lines(tmp_path / "out", "sent"))
        assert len(received) == 4  # the change of the last round, and then the model whole
        assert set(lines(tmp_path / site, "sent")) <= set(lines(tmp_path / "out", "accepted"))


@pytest.mark.slow
def test_flare_carries_few_bits_to_the_same_weights_as_a_rehearsal(data, tmp_path):
    changes = {"training": {"steps_per_round": 1, "precision": "fp32"}, "federation": {"rounds": 2, "transfer_bits": 3}}
    path = write_job(tmp_path / "job.yaml", **changes)
    done = fedspleen("simulate", "--config", path, "--data", data, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sites = {site: SiteSettings(data=data / site, threads=1) for site in ("site-1", "site-2")}
    rehearse(load_job(path), sites, tmp_path / "rehearsed")
    assert_same(models(tmp_path / "out"), models(tmp_path / "rehearsed"))
    rounds = read_result(tmp_path / "out" / "result.json").rounds
    assert {site.bytes_received for site in rounds[0].sites.values()} == {0}
