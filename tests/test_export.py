"""`fedspleen export`: other tools compute what the model computes, without this package."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from fl_app.cli.export import export
from fl_app.config_file import parse_job
from fl_app.errors import DataError, TrainingError, UsageError
from fl_app.export import network as network_module
from fl_app.export.card import metrics, pseudonyms, write_card
from fl_app.export.network import load_network, write_onnx
from fl_app.model_file import ModelInfo, load_model, save_model
from fl_app.result import Final, Result, Site, SiteScores, write_result
from fl_app.training.trainer import ready_network
from fl_app.verdict import find_caveats
from tests.test_predict import JOB, run, write_model, write_scan

NETWORKS = [("unet", "instance"), ("unet", "batch"), ("segresnet", "group")]
EVERY = [
    ("unet", (32, 32, 16)), ("segresnet", (32, 32, 16)), ("dynunet", (32, 32, 16)), ("vnet", (32, 32, 16)),
    ("ahnet", (64, 64, 32)), ("unetr", (32, 32, 16)), ("swinunetr", (64, 64, 32)), ("dints", (32, 32, 16)),
]  # fmt: skip
WIDE = JOB.replace("[4, 8]", "[8, 16]")  # groups of SegResNet need 8 filters


def python(code, *arguments, cwd=None):
    """Run code in an interpreter in which this package cannot be imported."""
    blocked = "import sys; sys.modules['fl_app'] = None\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", blocked + code, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def patches_and_logits(model):
    network = load_network(model)
    patches = torch.rand(3, *network.patch.shape[1:], generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return patches, network.module(patches)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "normalisation"), NETWORKS)
def test_torchscript_runs_in_a_process_without_this_package_and_without_monai(tmp_path, name, normalisation):
    """Measured: no difference."""
    model = write_model(tmp_path / "m", name, normalisation, WIDE)
    export(model, "torchscript", tmp_path / "ts")
    patches, expected = patches_and_logits(model)
    np.save(tmp_path / "in.npy", patches.numpy())
    facts = python(
        "sys.modules['monai'] = None\nimport numpy, torch\nfacts = {'fedspleen.json': ''}\n"
        "network = torch.jit.load(sys.argv[1] + '/ts/model.ts', _extra_files=facts)\n"
        "logits = network(torch.from_numpy(numpy.load(sys.argv[1] + '/in.npy')))\n"
        "numpy.save(sys.argv[1] + '/out.npy', logits.detach().numpy()); print(facts['fedspleen.json'].decode())",
        tmp_path,
    )
    assert np.abs(np.load(tmp_path / "out.npy") - expected.numpy()).max() < 1e-5
    facts = json.loads(facts)
    assert facts["classes"] == ["background", "spleen", "liver"] and facts["label_values"] == {"spleen": 3, "liver": 1}
    assert facts["spacing_mm"] == [4, 4, 5] and facts["patch_voxels"] == [16, 16, 8]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "normalisation"), NETWORKS)
def test_onnx_gives_the_same_mask_in_onnxruntime_for_any_number_of_patches(tmp_path, name, normalisation):
    """Measured: logits differ by at most 1e-5."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = write_model(tmp_path / "m", name, normalisation, WIDE)
    export(model, "onnx", tmp_path / "onnx")
    patches, expected = patches_and_logits(model)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [1, 16, 16, 8]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["fedspleen"])
    assert facts["classes"] == ["background", "spleen", "liver"]
    for count in (1, 3):
        (logits,) = session.run(["logits"], {"image": patches[:count].numpy()})
        assert np.abs(logits - expected[:count].numpy()).max() < 1e-3
        assert (logits.argmax(1) == expected[:count].argmax(1).numpy()).mean() > 0.9999


@pytest.mark.long
@pytest.mark.timeout(1800)  # Swin UNETR as ONNX: minutes
@pytest.mark.parametrize("format", ["torchscript", "onnx", "monai-bundle"])
@pytest.mark.parametrize(("name", "patch"), EVERY)
def test_every_network_can_be_exported(tmp_path, name, patch, format):
    """What is written is compared with the model; more than 0.001 of the largest logit would be an error."""
    size = "" if name in ("unet", "segresnet", "vnet") else ", size: small"
    job = parse_job(f"data: {{patch_voxels: {list(patch)}}}\nnetwork: {{name: {name}{size}}}\n")
    weights = ready_network(job, torch.device("cpu")).state_dict()
    save_model(tmp_path / "m", weights, ModelInfo(job, 1, None, {}))
    export(tmp_path / "m", format, tmp_path / "out")
    assert f"network ({name})" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_network_that_torch_cannot_write_is_refused_in_one_sentence(tmp_path, capfd):
    class Choosy(torch.nn.Module):
        def forward(self, image):
            return image if image.sum() > 0 else -image

    pytest.importorskip("onnxruntime")
    network = replace(load_network(write_model(tmp_path / "m")), module=Choosy())
    with pytest.raises(
        TrainingError, match=r"cannot write this network \(unet\) as ONNX; --format torchscript and"
    ) as e:
        write_onnx(network, tmp_path / "model.onnx")
    assert len(str(e.value).splitlines()) == 1 and "\x1b" not in str(e.value)
    assert capfd.readouterr() == ("", "") and not (tmp_path / "model.onnx").exists()


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(network_module, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"onnx, onnxscript, onnxruntime; pip install 'fedspleen\[export\]'"):
        export(write_model(tmp_path / "m"), "onnx", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_what_is_written_computes_what_the_model_computes(tmp_path):
    model = write_model(tmp_path / "m")
    export(model, "torchscript", tmp_path / "out")
    patches, expected = patches_and_logits(model)
    assert (torch.jit.load(tmp_path / "out" / "model.ts")(patches) - expected).abs().max() < 1e-5


@pytest.fixture
def bundle(tmp_path):
    export(write_model(tmp_path / "m"), "monai-bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.slow
def test_the_bundle_predicts_what_we_predict(tmp_path, bundle):
    """As `python -m monai.bundle run` does. Measured: no voxel of the model's grid differs, probabilities by 2e-7."""
    image, label = write_scan(tmp_path / "bundle" / "scans" / "ct.nii.gz")
    label.rename(tmp_path / "label.nii.gz")
    code = "from monai.bundle import run; run(config_file='configs/inference.json', meta_file='configs/metadata.json')"
    python(code, cwd=bundle)
    run(tmp_path / "m", [image], tmp_path / "ours")
    theirs = nibabel.load(bundle / "predictions" / "ct_label.nii.gz")
    ours = nibabel.load(tmp_path / "ours" / "ct_label.nii.gz")
    assert np.allclose(theirs.affine, ours.affine)
    theirs, ours = np.asarray(theirs.dataobj), np.asarray(ours.dataobj)
    # beside the air that is cut off, where all probabilities are 1e-16 or less, theirs are decided by rounding
    inner = (slice(2, -2),) * 3
    assert np.array_equal(theirs[inner], ours[inner])
    assert (theirs != ours).mean() < 0.03
    assert {0, 1, 3} == set(np.unique(ours[inner]))


def test_the_bundles_probabilities_are_ours(tmp_path, bundle):
    from monai.bundle import ConfigParser

    image, _ = write_scan(tmp_path / "scans" / "ct.nii.gz")
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"], parser["datalist"] = str(bundle), [str(image)]
    with torch.no_grad():
        item = parser.get_parsed_content("predict_one")(parser.get_parsed_content("dataset")[0])
    probabilities = parser.get_parsed_content("probabilities")(item)["pred"]
    run(tmp_path / "m", [image], tmp_path / "ours", probabilities=True)
    inner = (slice(2, -2),) * 3  # the outermost voxels fade out in ours
    for number, organ in ((1, "spleen"), (2, "liver")):
        ours = np.asarray(nibabel.load(tmp_path / "ours" / f"ct_{organ}_probability.nii.gz").dataobj)
        assert np.abs(probabilities[number].numpy()[inner] - ours[inner]).max() < 1e-4


# what https://docs.monai.io/en/stable/mb_specification.html demands, as a schema: MONAI's own is only on the internet
SCHEMA = {
    "type": "object",
    "required": [
        "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
        "description", "authors", "copyright", "network_data_format", "changelog", "schema",
    ],
    "properties": {
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        **{key: {"type": "string"} for key in ("task", "description", "authors", "copyright", "data_type")},
        "eval_metrics": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "additionalProperties": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": [
                        "type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
                        "channel_def",
                    ],
                    "properties": {
                        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
                        "num_channels": {"type": "integer"},
                        "spatial_shape": {"type": "array"},
                        "value_range": {"type": "array"},
                        "is_patch_data": {"type": "boolean"},
                        "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
                    },
                },
            },
        },
    },
}  # fmt: skip


@pytest.mark.slow
def test_the_bundle_passes_monais_own_checks(tmp_path, bundle):
    pytest.importorskip("jsonschema")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    python(
        "from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out\n"
        "meta, config = 'configs/metadata.json', 'configs/inference.json'\n"
        # a file that exists is not downloaded
        "verify_metadata(meta_file=meta, filepath=sys.argv[1])\n"
        "verify_net_in_out('network_def', meta_file=meta, config_file=config, device='cpu')\n"
        "ckpt_export('network_def', filepath='exported.ts', ckpt_file='models/model.pt', meta_file=meta,"
        " config_file=config)\n",
        tmp_path / "schema.json",
        cwd=bundle,
    )
    patches, expected = patches_and_logits(tmp_path / "m")
    exported = torch.jit.load(bundle / "exported.ts")
    assert (exported(patches) - expected).abs().max() < 1e-5
    # the check can fail
    broken = json.loads((bundle / "configs" / "metadata.json").read_text())
    del broken["network_data_format"]["inputs"]["image"]["channel_def"]
    (bundle / "configs" / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(AssertionError, match="Failed validating"):
        python(
            "from monai.bundle import verify_metadata\n"
            "verify_metadata(meta_file='configs/metadata.json', filepath=sys.argv[1])",
            tmp_path / "schema.json",
            cwd=bundle,
        )


def test_the_bundles_weights_are_the_models(tmp_path, bundle):
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    original, _ = load_model(tmp_path / "m")
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[name], original[name]) for name in weights)


def make_result(**changes):
    job = parse_job(JOB.replace("NAME", "unet").replace("NORM", "instance"))
    sites = {
        name: Site(
            training_cases=cases, validation_cases=2, test_cases=3, data_warnings=0, device="cpu", precision="fp32",
            versions={}, preparation_seconds=1,
        )
        for name, cases in (("charite", 9), ("charite-mitte", 30))
    }  # fmt: skip
    scores = SiteScores(cases=3, dice=0.9, dice_std=0.01, surface_dice=0.8)
    final = Final(
        round=1, best_metric="val_dice", best_value=0.8, mean_dice=0.912, mean_dice_over_sites=0.9,
        mean_surface_dice=0.8, sites=dict.fromkeys(sites, scores), left_out={"klinikum": "no answer"},
    )  # fmt: skip
    result = Result(
        name="job", seed=0, rounds_asked=3, started="", versions={}, sites=sites, final=final,
        config=job.model_dump(mode="json"), refused={"klinikum": "no cases"},
    )  # fmt: skip
    result.caveats = find_caveats(result)
    return result.model_copy(update=changes)


def test_the_card_names_no_site(tmp_path):
    model = write_model(tmp_path / "m")
    write_result(tmp_path / "result.json", make_result())
    export(model, "torchscript", tmp_path / "out", tmp_path / "result.json")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert not re.search("charite|mitte|klinikum", card)
    assert "| site-1 | 30 | 2 | 3 |" in card and "| site-2 | 9 | 2 | 3 |" in card
    assert "| all | 6 | 0.912 |" in card
    assert "without site-3, which could take no part" in card
    for words in ("Intended use", "not for diagnosis", "Limits", "-160 to 240 HU", "4 x 4 x 5 mm", "spleen 3, liver 1"):
        assert words in card
    assert pseudonyms(make_result()) == {"charite-mitte": "site-1", "charite": "site-2", "klinikum": "site-3"}


def test_the_card_says_what_it_does_not_know():
    _, info = load_model_info()
    card = write_card(info, None, {"model.ts": "the network"})
    assert "made without the run's result" in card and "not recorded here" in card
    assert "Chosen after round 4 by val_dice 0.875" in card


@pytest.mark.parametrize(
    ("found", "chosen", "after", "tested"),
    [
        ((), ("val_dice", 0.8), 1, True),
        ((), None, 1, True),
        ((), ("val_dice", 0.7), 1, False),
        ((), ("val_dice", 0.8), 2, False),
        (("{}",), ("val_dice", 0.8), 1, False),
    ],
)
def test_the_card_has_the_scores_of_the_tested_model_only(found, chosen, after, tested):
    job, _ = load_model_info()
    info = ModelInfo(job, after, chosen, {}, found)
    card = write_card(info, make_result(), {})
    assert ("| all | 6 | 0.912 |" in card) == tested == ("test_mean_dice" in metrics(info, make_result()))
    assert ("are not repeated here" in card) != tested
    assert ("(found by architecture search)" in card) == bool(found) != ("network (unet)" in card)


def load_model_info():
    job = parse_job(JOB.replace("NAME", "unet").replace("NORM", "instance"))
    return job, ModelInfo(job, 4, ("val_dice", 0.875), {"torch": "2"})


def test_metrics_stand_in_the_bundles_metadata(tmp_path):
    write_result(tmp_path / "result.json", make_result())
    export(write_model(tmp_path / "m"), "monai-bundle", tmp_path / "out", tmp_path / "result.json")
    metadata = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == {"test_mean_dice": 0.912, "test_mean_surface_dice": 0.8}


def test_wrong_arguments_end_in_one_sentence(tmp_path):
    model = write_model(tmp_path / "m")
    export(model, "torchscript", tmp_path / "out")
    with pytest.raises(UsageError, match="out exists"):
        export(model, "torchscript", tmp_path / "out")
    export(model, "torchscript", tmp_path / "out", overwrite=True)
    (tmp_path / "own").mkdir()
    with pytest.raises(UsageError, match="own exists"):  # never a folder that is no export
        export(model, "torchscript", tmp_path / "own", overwrite=True)
    with pytest.raises(DataError, match="there is no such model file"):
        export(tmp_path / "none", "torchscript", tmp_path / "new")
    other = make_result()
    other.config["seed"] = 6
    write_result(tmp_path / "result.json", other)
    with pytest.raises(DataError, match="result of another job"):
        export(model, "torchscript", tmp_path / "new", tmp_path / "result.json")
    assert not (tmp_path / "new").exists()
