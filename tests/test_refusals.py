"""What is refused before it can do harm, each with a sentence that names the cause; FLARE's own checks, no processes.

With a running server and running sites: ``test_sites.py``. What may happen to a kit on its way: ``test_kits.py``.
"""

import io
import json
import shutil
import zipfile
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer

from fl_app.config import Job
from fl_app.job import build_flare_job
from fl_app.site import SiteSettings, write_site
from provisioning.consortium import parse_consortium
from provisioning.manifest import MANIFEST, SIGNATURE, Manifest, digests
from provisioning.provision import provision
from provisioning.signing import load_signing_key, sign
from server.administration import Administration
from server.gate import JobGate
from tests.federation import write_sites
from tests.test_consortium import fedspleen_in_process  # noqa: F401 - the fixture fedspleen
from tests.test_preflight import TEXT, make_kits


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium")
    make_kits(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What `fedspleen submit` hands to FLARE: each file by its path."""
    folder = tmp_path_factory.mktemp("exported")
    build_flare_job(Job(name="small"), 1).export_job(str(folder))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def submitted(consortium, files):
    """What the server's gate says: whether it takes the job, and why not."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for folder in ("small/", "small/app/", "small/app/config/", "small/app/custom/"):
            if any(name.startswith(folder) for name in files):
                opened.writestr(folder, b"")
        for name, content in files.items():
            opened.writestr(name, content)
    good, reason, _ = JobGate(consortium / "kits" / "server").validate("small", stream.getvalue())
    return good, reason


def changed(files, side, change):
    """The job with a change of the configuration of one side."""
    name = f"small/app/config/config_fed_{side}.json"
    config = json.loads(files[name])
    change(config)
    return {**files, name: json.dumps(config).encode()}


def test_a_job_as_we_make_it_is_taken(consortium, exported):
    assert submitted(consortium, exported) == (True, "")


def test_a_job_with_code_is_refused(consortium, exported):
    good, reason = submitted(consortium, {**exported, "small/app/custom/evil.py": b"print()"})
    assert not good and "brings code of its own" in reason and "\n" not in reason


def test_a_job_that_names_another_class_is_refused_wherever_it_names_it(consortium, exported):
    def workflow(config):
        config["workflows"][0]["path"] = "nvflare.app_common.workflows.fedavg.FedAvg"

    def component(config):
        config["components"] = [{"id": "x", "class_path": "subprocess.Popen", "args": {"args": ["true"]}}]

    def argument(config):
        config["executors"][0]["executor"]["args"]["helper"] = {"path": "os.system", "args": {"command": "true"}}

    for side, change, name in (
        ("server", workflow, "nvflare.app_common.workflows.fedavg.FedAvg"),
        ("client", component, "subprocess.Popen"),
        ("client", argument, "os.system"),
    ):
        good, reason = submitted(consortium, changed(exported, side, change))
        assert not good and f"it names {name}, not on the list" in reason, reason
        assert "clients.executor.SiteExecutor" in reason and "\n" not in reason


def test_a_site_refuses_what_a_server_lets_pass(consortium):
    """FLARE's own check, with the site's own list."""
    site = Workspace(root_dir=str(consortium / "kits" / "site-1"), config_folder="config")
    check = ComponentPathAuthorizer().authorize_component_config
    for path in ("subprocess.Popen", "os.system", "clients.executor_of_mine.X", "nvflare.app_common.x.Y"):
        with pytest.raises(UnsafeComponentError, match="is not in allow_list"):
            check({"path": path}, workspace=site)
    check({"path": "clients.executor.SiteExecutor"}, workspace=site)


def test_why_a_job_did_not_run_is_part_of_its_state():
    def state(**meta):
        session = SimpleNamespace(get_job_meta=lambda job_id: {"job_id": job_id, **meta})
        return Administration(lambda: session).state("1")

    failed = state(status="FINISHED:FAILED_TO_RUN", job_deploy_detail=["server: BYOC not permitted"])
    assert failed.ended and failed.note == "server: BYOC not permitted"
    one = state(status="RUNNING", job_deploy_detail=["server: OK", "site-1: OK", "site-2: not authorized"])
    assert not one.ended and one.note == "site-2: not authorized"
    waits = state(status="SUBMITTED", schedule_history=["2026-11-21 14:33:35: not enough sites"])
    assert waits.note == "not enough sites"
    assert state(status="RUNNING", schedule_history=["2026-11-21 14:33:35: scheduled"]).note == ""


def one_byte(kit, consortium):
    path = kit / "startup" / "fed_client.json"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def one_file(kit, consortium):
    (kit / "startup" / "more.sh").write_text("true\n")


def another_root(kit, consortium):
    shutil.copy(make_kits(kit.parent / "other", "other") / "site-1/startup/rootCA.pem", kit / "startup/rootCA.pem")


def another_sites_certificate(kit, consortium):
    text = TEXT.format(name="trial", host="localhost", port=1, days=300)
    both = text.replace("organisation: hospital_1}", "organisation: hospital_1}, {name: site-2, organisation: x}")
    other = shutil.copytree(consortium, kit.parent / "copy")
    provision(parse_consortium(both), other)
    for name in ("client.crt", "client.key"):
        shutil.copy(other / "kits/site-2/startup" / name, kit / "startup" / name)


def resign(kit, consortium, **changes):
    """The consortium itself signs what is in the kit's folder."""
    manifest = {**json.loads((kit / MANIFEST).read_bytes()), **changes}
    files = {name: (kit / name).read_bytes() for name in manifest["files"]}
    manifest = json.dumps({**manifest, "files": {n: d.model_dump() for n, d in digests(files).items()}})
    key = load_signing_key((consortium / "state/signing.pem").read_bytes())
    content = Manifest.model_validate_json(manifest).as_bytes()
    (kit / MANIFEST).write_bytes(content)
    (kit / SIGNATURE).write_bytes(sign(key, content))


def an_older_package(kit, consortium):
    path = kit / "local" / "resources.json.default"
    resources = json.loads(path.read_text())
    path.write_text(json.dumps({**resources, "class_allow_list": ["clients.older.Executor"]}))
    resign(kit, consortium, fedspleen="0.0.9")


def an_older_format(kit, consortium):
    path = kit / MANIFEST
    path.write_bytes(path.read_bytes().replace(b"fedspleen kit 1", b"fedspleen kit 0"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (one_byte, "startup/fed_client.json: changed"),
        (one_file, "startup/more.sh: added, it is no part of this kit"),
        (another_root, "signed by another authority than startup/rootCA.pem"),
        (another_sites_certificate, "startup/client.crt: for site-2, in a kit for site-1"),
        (an_older_package, "fedspleen 0.0.9 made the kit - install that version, or let the lead provision again"),
        (an_older_format, "another format of kits"),
    ],
)
def test_a_site_does_not_start_with_such_a_kit_and_says_why(consortium, fedspleen, tmp_path, harm, words):
    kit = shutil.copytree(consortium / "kits" / "site-1", tmp_path / "kit")
    write_site(kit / "site.yaml", SiteSettings(data=write_sites(tmp_path / "data", site_1=1) / "site-1"))
    harm(kit, consortium)
    done = fedspleen("client", "start", kit)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (kit / "log.txt").exists(), "FLARE was not started"


def test_an_expired_kit_does_not_start_and_says_who_renews_it(tmp_path, fedspleen):
    kits = make_kits(tmp_path / "kits", days=10, now=datetime.now(timezone.utc) - timedelta(days=11))
    for command in (("server", "start", kits / "server"), ("status", "--kit", kits / "lead@example.org")):
        done = fedspleen(*command)
        assert done.returncode == 1 and "expired on" in done.stderr and "lead to renew it" in done.stderr
