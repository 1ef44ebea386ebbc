"""Thousands of malformed files and messages: each ends in a sentence, in time, whatever is in it."""

import gzip
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save

from fl_app.config_file import parse_job
from fl_app.data.cases import find_cases
from fl_app.data.checks import check_cases, format_findings
from fl_app.errors import UserError
from fl_app.messages import SiteFailure, SiteReady, TestReport, TrainReport, ValidationReport
from fl_app.model_file import ModelInfo, load_model, save_model
from fl_app.result import read_result
from fl_app.site import read_site
from provisioning import archive
from provisioning.consortium import parse_consortium
from provisioning.provision import provision
from provisioning.requests import make_request, read_request
from provisioning.verify import verify_kit
from tests.test_messages import READY, TEST, TRAIN, VALIDATION
from tests.volumes import SPLEEN, write_case

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[1]
JOB = (ROOT / "fl_app/jobs/spleen.yaml").read_text()
CONSORTIUM = (ROOT / "provisioning/examples/three-hospitals.yaml").read_text()
SITE = "data: images\ncases: [a, b]\ndevice: cuda:0\nthreads: 4\ncache: prepared\n"


def fuzz(examples):
    """No input may take two seconds; every run tries other ones."""
    unhealthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=2000, suppress_health_check=unhealthy)


def ends_well(call, *arguments):
    """What a call returns; or none, if it ends in a sentence that can be printed."""
    try:
        return call(*arguments)
    except UserError as error:
        text = str(error)
        assert text.strip() and len(text) < 20_000 and "Traceback" not in text
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
        return None


# what may stand anywhere

PIECES = """
[ ] { } : , - ? | > & * ! % @ # ' " null ~ yes .nan .inf -.inf 0x1F 1_000 1e999 2001-02-30 0o8 190:20:30
&a *a <<: !!python/object/apply:os.system !!binary !!set !!bool !!int !!float !!timestamp !!omap !!pairs --- ...
data: network: training: federation: labels: name: sites: server: hosts: 99999999999999999999999999
"""
YAML_PIECES = st.sampled_from([*PIECES.split(), "\n", "\n  ", "\t"])
yaml_text = st.lists(YAML_PIECES | st.text(max_size=5), max_size=30).map(" ".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


@st.composite
def mutated(draw, content):
    """Some content with a few pieces changed, removed or put in."""
    kind = type(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        piece = draw((YAML_PIECES | st.text(max_size=10)) if kind is str else st.binary(max_size=20))
        content = content[:start] + piece + content[end:]
    return content


@st.composite
def changed(draw, document):
    """A JSON document with a value somewhere replaced, removed or added."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        part = document
        while isinstance(part, (dict, list)) and part:
            key = draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
            inner = part[key]
            if not isinstance(inner, (dict, list)) or not inner or draw(st.booleans()):
                break
            part = inner
        if not part:
            break
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            part[key] = draw(values)
        elif action == "remove":
            del part[key]
        elif isinstance(part, dict):
            part[draw(st.text(max_size=10))] = draw(values)
    return document


# files that people write


@fuzz(200)
@given(yaml_text | st.text(max_size=200) | mutated(JOB))
def test_a_job_file(text):
    ends_well(parse_job, text)


@fuzz(150)
@given(changed({"data": {"labels": {"spleen": 1}, "spacing_mm": [1, 1, 1]}, "network": {}, "federation": {}}))
def test_a_job_of_the_wrong_values(document):
    ends_well(parse_job, json.dumps(document))


@fuzz(150)
@given(yaml_text | mutated(CONSORTIUM))
def test_a_consortium_file(text):
    ends_well(parse_consortium, text)


@fuzz(200)
@given(st.binary(max_size=80) | (yaml_text | mutated(SITE)).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_site_file(tmp_path, content):
    (tmp_path / "site.yaml").write_bytes(content)
    ends_well(read_site, tmp_path / "site.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
        "data: &a {labels: *a}\n",
        "data: &a\n  labels: {<<: *a}\n",
        "[" * 5000,
        "{a: " * 5000,
        "!!bool maybe",
        "!!timestamp 2001-99-99",
        "x: " + "9" * 5000,
        "? [a, b]\n: 1",
        "? {a: b}\n: 1",
        "- " * 3000,
        "\x00",
        "\ufeff",
        "%YAML 9.9\n---\nx",
        "!<tag:yaml.org,2002:python/object/apply:os.system> [id]",
    ],
    ids=range(15),
)
def test_texts_that_break_readers_of_yaml(tmp_path, text):
    (tmp_path / "site.yaml").write_text(text)
    for call, argument in ((parse_job, text), (parse_consortium, text), (read_site, tmp_path / "site.yaml")):
        assert ends_well(call, argument) is None or call is parse_job


# files that travel


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium")
    text = (
        "name: trial\nserver: {hosts: [localhost], port: 1}\nsites: [{name: site-a, organisation: a}]\n"
        "administrators: [{email: lead@example.org, role: lead}]\n"
    )
    return provision(parse_consortium(text), folder)


@fuzz(100)
@given(data=st.data())
def test_a_kit(kit, tmp_path, data):
    content = kit.archives["site-a"].read_bytes()
    place = data.draw(st.sampled_from(["any", "head", "tail"]))
    start, end = {"any": (0, len(content)), "head": (0, 400), "tail": (len(content) - 1500, len(content))}[place]
    broken = content[:start] + data.draw(mutated(content[start:end])) + content[end:]
    (tmp_path / "a.kit.zip").write_bytes(broken)
    report = ends_well(verify_kit, tmp_path / "a.kit.zip")
    assert report is None or not report.good or broken == content


@fuzz(100)
@given(data=st.data())
def test_the_manifest_of_a_kit(kit, tmp_path, data):
    files, _ = archive.unpack(kit.archives["site-a"].read_bytes())
    good = files["kit.json"]
    content = data.draw(changed(json.loads(good)).map(json.dumps).map(str.encode) | mutated(good))
    (tmp_path / "a.kit.zip").write_bytes(archive.pack(files | {"kit.json": content}))
    report = ends_well(verify_kit, tmp_path / "a.kit.zip")
    assert report is None or not report.good or content == good


@pytest.fixture(scope="module")
def request_file(tmp_path_factory):
    return make_request("site-a", "a", tmp_path_factory.mktemp("key") / "new")[0].read_bytes()


@fuzz(60)
@given(data=st.data())
def test_a_request_for_a_certificate(request_file, tmp_path, data):
    (tmp_path / "request").write_bytes(data.draw(st.binary(max_size=60) | mutated(request_file)))
    ends_well(read_request, tmp_path / "request")


# models and results

INFO = ModelInfo(parse_job("network: {channels: [2, 4]}\ndata: {patch_voxels: [8, 8, 8]}"), 3, ("val_dice", 0.5), {})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, {"a": torch.ones(2, 3), "b": torch.zeros(0), "c": torch.tensor(1.0)}, INFO)
    return path.read_bytes()


@fuzz(150)
@given(data=st.data())
def test_a_model_file(model, tmp_path, data):
    content = data.draw(st.binary(max_size=100) | mutated(model) | st.integers(0, len(model)).map(lambda n: model[:n]))
    (tmp_path / "m").write_bytes(content)
    ends_well(load_model, tmp_path / "m")


@fuzz(150)
@given(data=st.data())
def test_the_description_in_a_model_file(model, tmp_path, data):
    size = struct.unpack("<Q", model[:8])[0]
    described = json.loads(json.loads(model[8 : 8 + size])["__metadata__"]["fedspleen"])
    text = data.draw(changed(described).map(json.dumps) | values.map(json.dumps) | mutated(json.dumps(described)))
    (tmp_path / "m").write_bytes(save({"a": torch.ones(2)}, {"fedspleen": text.encode("utf-8", "replace").decode()}))
    ends_well(load_model, tmp_path / "m")


@fuzz(100)
@given(data=st.data())
def test_the_header_of_a_model_file(model, tmp_path, data):
    size = struct.unpack("<Q", model[:8])[0]
    header = json.dumps(data.draw(changed(json.loads(model[8 : 8 + size])))).encode()
    claimed = data.draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
    (tmp_path / "m").write_bytes(struct.pack("<Q", claimed) + header + model[8 + size :])
    ends_well(load_model, tmp_path / "m")


class Planted:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.promise(
    "files: pickled code in a model",
    "never executed",
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "pkl", "bin"])
def test_a_pickled_model_is_never_executed(tmp_path, protocol, ending):
    trap = tmp_path / "executed"
    path = tmp_path / f"model.{ending}"
    path.write_bytes(pickle.dumps(Planted(trap), protocol))
    assert ends_well(load_model, path) is None and not trap.exists()
    torch.save({"a": Planted(trap)}, path)
    assert ends_well(load_model, path) is None and not trap.exists()
    pickle.loads(pickle.dumps(Planted(trap), protocol))  # noqa: S301 - the trap works
    assert trap.exists()


RESULT = {
    "name": "x",
    "seed": 0,
    "rounds_asked": 1,
    "started": "2026-11-21T00:00:00+00:00",
    "versions": {},
    "config": {"data": {"reuse_cases": False}},
    "rounds": [{"number": 1, "sites": {"a": {"loss": 0.5, "steps": 3}}, "left_out": {"b": "late"}}],
    "final": None,
}


@fuzz(200)
@given(
    changed(RESULT).map(lambda document: json.dumps(document).encode())
    | mutated(json.dumps(RESULT).encode())
    | st.binary(max_size=60)
    | st.sampled_from([b"[" * 5000, b'{"name":' * 5000, b"\xff\xfe", b'{"seed": NaN}'])
)
def test_a_result(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    ends_well(read_result, tmp_path / "result.json")


# what sites send

REPORTS = [
    (SiteReady, READY),
    (TrainReport, TRAIN),
    (ValidationReport, {"received": VALIDATION}),
    (TestReport, TEST),
    (SiteFailure, {"kind": "data"}),
]


@pytest.mark.parametrize(("kind", "good"), REPORTS, ids=[kind.__name__ for kind, _ in REPORTS])
def test_a_report(kind, good):
    @fuzz(120)
    @given(values | changed(good))
    def holds(document):
        try:
            report = kind.model_validate(document)
        except ValidationError:
            return
        written = report.model_dump_json()
        assert kind.model_validate_json(written) == report
        # it stands in logs, in result.json and on the lead's screen
        assert len(written) < 100_000 and all(text.isprintable() and len(text) <= 200 for text in texts(document))

    holds()


def texts(document):
    """Every text in a document, its keys too."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield from texts(key)
            yield from texts(value)
    elif isinstance(document, list):
        for value in document:
            yield from texts(value)


TEXTS = [
    (SiteReady, READY, ("device",)),
    (SiteReady, READY, ("versions", "torch")),
    (SiteReady, READY, ("versions", None)),
    (ValidationReport, {"received": VALIDATION}, ("received", "metrics", None)),
]


@pytest.mark.parametrize(("kind", "good", "place"), TEXTS)
@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "x" * 101, "\u202e", "\ud800"])
def test_a_text_that_cannot_stand_in_a_line_is_refused(kind, good, place, text):
    document = json.loads(json.dumps(good))
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1] or text] = text if place[-1] or place[0] == "versions" else 0.5
    with pytest.raises(ValidationError):
        kind.model_validate(document)


# images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = write_case(folder, "case", ending=".nii")
    return folder, paths, [path.read_bytes() for path in paths]


FIELDS = {
    "sizeof_hdr": (0, "<i"),
    "dim": (40, "<8h"),
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    "pixdim": (76, "<8f"),
    "vox_offset": (108, "<f"),
    "scl": (112, "<2f"),
    "codes": (252, "<2h"),
    "quaternion": (256, "<6f"),
    "sform": (280, "<12f"),
    "magic": (344, "<4s"),
}


@st.composite
def header(draw, content):
    """A NIfTI file with some header fields that hold anything."""
    content = bytearray(content)
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3, unique=True)):
        place, form = FIELDS[name]
        kind = form[-1]
        number = {
            "h": st.integers(-32768, 32767) | st.integers(-1, 30),
            "i": st.integers(-(2**31), 2**31 - 1),
            "f": st.floats(width=32),
            "s": st.binary(min_size=4, max_size=4),
        }[kind]
        count = 1 if kind == "s" else len(struct.unpack(form, bytes(struct.calcsize(form))))
        struct.pack_into(form, content, place, *(draw(number) for _ in range(count)))
    return bytes(content)


@fuzz(120)
@given(data=st.data())
def test_an_image(images, data):
    folder, paths, contents = images
    which = data.draw(st.integers(0, 1))
    good = contents[which]
    content = data.draw(
        header(good) | mutated(good) | st.integers(0, len(good)).map(lambda size: good[:size]) | st.binary(max_size=400)
    )
    for path, old in zip(paths, contents, strict=True):
        path.write_bytes(old)
    paths[which].write_bytes(content)
    findings = check_cases(find_cases(folder), SPLEEN)
    assert all(finding.problem.isprintable() and finding.remedy for finding in findings)
    assert str(folder) not in format_findings(findings)


@fuzz(40)
@given(data=st.data())
def test_a_compressed_image(images, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "compressed"
    for path, content in zip(images[1], images[2], strict=True):
        target = folder / path.relative_to(images[0]).with_suffix(".nii.gz")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(content, 1))
    content = target.read_bytes()
    target.write_bytes(data.draw(mutated(content) | st.integers(0, len(content)).map(lambda size: content[:size])))
    findings = check_cases(find_cases(folder), SPLEEN)
    assert all(finding.problem.isprintable() and finding.remedy for finding in findings)


@fuzz(100)
@given(
    changed({"training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}], "modality": {"0": "CT"}})
    .map(json.dumps)
    .map(str.encode)
    | st.binary(max_size=60)
)
def test_a_description_of_a_data_set(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    ends_well(find_cases, tmp_path)
