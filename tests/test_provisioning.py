"""Provisioning: certificates live as long as was asked, what did not change stays, and no kit holds too much."""

import json
import shutil
import stat
from datetime import datetime, timedelta, timezone

import pytest
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.security.security import FLAuthorizer

from fl_app.errors import ProvisioningError, UsageError
from provisioning.certificates import read_certificate
from provisioning.components import CLASS_ALLOW_LIST
from provisioning.consortium import parse_consortium
from provisioning.flare import AUTHORIZATION, place_server_storage
from provisioning.listing import ROOT, list_kits
from provisioning.provision import provision
from provisioning.verify import verify_kit
from tests.test_consortium import fedspleen_in_process  # noqa: F401 - the fixture fedspleen

TEXT = """\
name: trial
server:
  hosts: [fl.example.org, 10.0.0.7]
  port: 8102
sites:
  - {name: site-a, organisation: hospital_a}
  - {name: site-b, organisation: hospital_b}
administrators:
  - {email: lead@example.org, role: lead}
  - {email: it@example.org, role: site-admin, organisation: hospital_b}
"""
NEW_SITE = "  - {name: site-c, organisation: hospital_c}\nadministrators:"
EVERYBODY = ("server", "site-a", "site-b", "lead@example.org", "it@example.org")
NOW = datetime.now(timezone.utc)


def consortium(**changes):
    text = TEXT
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return parse_consortium(text)


def every_file(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kit_files(folder, *names):
    """All files of these participants' kits, with the archives."""
    files = every_file(folder)
    return {
        path: content
        for path, content in files.items()
        if any(path.startswith((f"kits/{name}/", f"{name}.kit.")) for name in names)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium")
    return folder, provision(consortium(), folder)


@pytest.fixture
def again(made, tmp_path):
    """A copy of the consortium's folder that a test may change."""
    return shutil.copytree(made[0], tmp_path / "copy")


def read(folder, name, path):
    return json.loads((folder / "kits" / name / path).read_text())


def test_everybody_gets_a_folder_and_an_archive(made):
    folder, done = made
    assert done.new == EVERYBODY and not done.changed + done.kept and not done.removed and not done.notes
    for name in EVERYBODY:
        assert done.archives[name].is_file()
        for kit in (done.archives[name], folder / "kits" / name):
            report = verify_kit(kit, done.fingerprint)
            assert report.good and not report.notes and report.participant == name
    assert verify_kit(done.archives["it@example.org"]).role == "site-admin"


def test_there_is_one_port_and_the_first_host_is_dialled(made):
    folder, _ = made
    server = read(folder, "server", "startup/fed_server.json")["servers"][0]
    assert server["service"]["target"].endswith(":8102") and server["admin_port"] == 8102
    client = read(folder, "site-a", "startup/fed_client.json")
    assert client["servers"][0]["service"]["target"] == "fl.example.org:8102"
    assert client["client"]["connection_security"] == server["connection_security"] == "mtls"
    admin = read(folder, "lead@example.org", "startup/fed_admin.json")["admin"]
    assert (admin["host"], admin["port"]) == ("fl.example.org", 8102)
    certificate = read_certificate((folder / "kits/server/startup/server.crt").read_bytes())
    assert certificate.hosts == {"fl.example.org", "10.0.0.7"}


def test_a_proxy_may_map_the_port(tmp_path):
    changed = consortium(port=("port: 8102", "port: 443\n  listen_port: 8102\n  bind: loopback\n  transport: grpc"))
    provision(changed, tmp_path / "c")
    server = read(tmp_path / "c", "server", "startup/fed_server.json")["servers"][0]
    assert server["service"] == {"target": "127.0.0.1:8102", "scheme": "grpc"} and server["admin_port"] == 8102
    service = read(tmp_path / "c", "site-a", "startup/fed_client.json")["servers"][0]["service"]
    assert service == {"target": "fl.example.org:443", "scheme": "grpc"}
    admin = read(tmp_path / "c", "lead@example.org", "startup/fed_admin.json")["admin"]
    assert (admin["port"], admin["scheme"]) == (443, "grpc")


def test_jobs_may_name_exactly_our_components(made):
    for name in ("server", "site-a", "site-b"):
        resources = read(made[0], name, "local/resources.json.default")
        assert resources["class_allow_list"] == CLASS_ALLOW_LIST
        assert resources["class_list_enforcement_mode"] == "enforce"
    assert read(made[0], "site-a", "local/resources.json.default")["allow_log_streaming"] is False


def test_nobody_may_send_code_and_rights_are_those_of_the_role(made):
    policy = read(made[0], "site-b", "local/authorization.json.default")
    assert policy == AUTHORIZATION
    authorizer = FLAuthorizer("hospital_b", policy)

    def may(role, right, organisation="consortium"):
        return authorizer.authorize(AuthzContext(right, Person("somebody", organisation, role)))[0]

    for role in ("project_admin", "org_admin", "member", "lead", "stranger"):
        assert not may(role, "byoc", "hospital_b")
    assert may("project_admin", "submit_job") and may("project_admin", "disable_client")
    assert may("org_admin", "shutdown", "hospital_b") and not may("org_admin", "shutdown", "hospital_a")
    assert not may("org_admin", "submit_job", "hospital_b")
    assert may("member", "list_jobs") and not may("member", "submit_job") and not may("member", "shutdown")
    # a site's logs may name its files
    assert not may("project_admin", "cat") and may("org_admin", "cat", "hospital_b")


def test_certificates_live_as_long_as_was_asked(made, tmp_path):
    lifetimes = ("administrators:", "certificates: {root_days: 60, kit_days: 7}\nadministrators:")
    provision(consortium(days=lifetimes), tmp_path / "short")
    for folder, root_days, kit_days in ((made[0], 3650, 365), (tmp_path / "short", 60, 7)):
        for path in folder.glob("kits/*/startup/*"):
            if path.suffix not in (".crt", ".pem"):
                continue
            certificate = read_certificate(path.read_bytes())
            days = root_days if path.name == "rootCA.pem" else kit_days
            assert certificate.valid_until - certificate.valid_from == timedelta(days=days)
            assert certificate.valid_from < datetime.now(timezone.utc)


def test_no_kit_holds_another_ones_key(made):
    folder, _ = made
    state = json.loads((folder / "state/cert.json").read_text())
    keys = {name: state[name]["pri_key"] for name in EVERYBODY}
    assert len(set(keys.values())) == len(EVERYBODY)
    secret = [state["root_pri_key"], (folder / "state/signing.pem").read_text()]
    for name in EVERYBODY:
        held = list(kit_files(folder, name).values())
        assert sum(keys[name].encode() in content for content in held) == 2  # folder and archive
        for other in [key for owner, key in keys.items() if owner != name] + secret:
            assert not any(other.strip().encode() in content for content in held)


def test_what_is_secret_is_private_to_its_owner(made):
    folder, _ = made
    assert stat.S_IMODE((folder / "state").stat().st_mode) == 0o700
    secret = [*(folder / "state").iterdir(), *folder.glob("*.kit.zip"), *folder.rglob("*.key")]
    for path in secret:
        assert path.name == ".lock" or stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for kit in (folder / "kits").iterdir():
        assert stat.S_IMODE(kit.stat().st_mode) == 0o700


def test_running_it_again_changes_nothing(again):
    before = every_file(again)
    done = provision(consortium(), again)
    assert done.kept == EVERYBODY and not done.new + done.changed
    assert every_file(again) == before


def test_a_newer_version_of_fedspleen_leaves_unchanged_kits_alone(again, monkeypatch):
    before = every_file(again)
    monkeypatch.setattr("provisioning.manifest.metadata.version", lambda name: "99.0")
    assert provision(consortium(), again).kept == EVERYBODY
    assert every_file(again) == before


def test_a_new_site_gets_a_kit_and_the_others_keep_theirs(again):
    before = kit_files(again, *EVERYBODY)
    done = provision(consortium(site=("administrators:", NEW_SITE)), again)
    assert done.new == ("site-c",) and set(done.kept) == set(EVERYBODY) and not done.changed
    assert kit_files(again, *EVERYBODY) == before
    new = read_certificate((again / "kits/site-c/startup/client.crt").read_bytes())
    assert new.is_issued_by(read_certificate((again / "kits/server/startup/rootCA.pem").read_bytes()))
    assert verify_kit(done.archives["site-c"], done.fingerprint).good


def test_a_removed_site_is_named_until_its_certificate_ends(again):
    fewer = consortium(site=("  - {name: site-a, organisation: hospital_a}\n", ""))
    done = provision(fewer, again)
    assert set(done.removed) == {"site-a"} and not done.changed
    listed = {each.name: each for each in list_kits(again).certificates}
    assert listed["site-a"].remark(NOW) == "no longer in the file: revoke it" and not listed["site-b"].remark(NOW)
    assert not provision(fewer, again, now=NOW + timedelta(days=400)).removed
    # and if it comes back, it is the same site with the same kit
    assert "site-a" in provision(consortium(), again).kept


def test_a_renewed_kit_is_a_new_one_and_the_others_keep_theirs(again):
    others = [name for name in EVERYBODY if name != "site-b"]
    before, own = kit_files(again, *others), kit_files(again, "site-b")
    done = provision(consortium(), again, renew=["site-b"])
    assert done.changed == ("site-b",) and set(done.kept) == set(others)
    assert kit_files(again, *others) == before
    assert kit_files(again, "site-b")["kits/site-b/startup/client.key"] != own["kits/site-b/startup/client.key"]
    with pytest.raises(UsageError, match="--renew nobody"):
        provision(consortium(), again, renew=["nobody"])


def test_an_expired_certificate_is_renewed(again):
    later = NOW + timedelta(days=366)
    assert provision(consortium(), again, now=later - timedelta(days=10)).notes
    done = provision(consortium(), again, now=later)
    assert set(done.changed) == set(EVERYBODY)
    assert verify_kit(done.archives["site-a"], done.fingerprint, now=later + timedelta(days=1)).good


def test_what_a_certificate_says_follows_the_file(again):
    assert provision(consortium(host=("10.0.0.7", "10.0.0.8")), again).changed == ("server",)
    assert read_certificate((again / "kits/server/startup/server.crt").read_bytes()).hosts >= {"10.0.0.8"}
    moved = consortium(host=("10.0.0.7", "10.0.0.8"), role=("role: site-admin", "role: member"))
    done = provision(moved, again)
    assert done.changed == ("it@example.org",) and verify_kit(done.archives["it@example.org"]).role == "member"


def test_what_the_root_certificate_does_not_allow_is_said(again):
    with pytest.raises(ProvisioningError, match="root_days: 100 - the root certificate was made for 3650 days"):
        provision(
            consortium(days=("administrators:", "certificates: {root_days: 100, kit_days: 9}\nadministrators:")), again
        )
    with pytest.raises(ProvisioningError, match="the root certificate expired on"):
        provision(consortium(), again, now=NOW + timedelta(days=3651))
    with pytest.raises(ProvisioningError, match="holds the kits of trial, not of other"):
        provision(consortium(name=("name: trial", "name: other")), again)
    almost = provision(consortium(), again, now=NOW + timedelta(days=3600), renew=EVERYBODY)
    assert any("root certificate expires" in note for note in almost.notes)
    assert verify_kit(almost.archives["site-a"], now=NOW + timedelta(days=3640)).good


def test_kits_that_were_damaged_are_made_whole_and_what_a_site_wrote_stays(again):
    kit = again / "kits/site-a"
    (kit / "startup/fed_client.json").write_text("{}")
    (kit / "log.txt").write_text("a log")
    assert provision(consortium(), again).changed == ("site-a",)
    assert verify_kit(kit).good and (kit / "log.txt").read_text() == "a log"


@pytest.mark.parametrize("name", ["cert.json", "signing.pem", "consortium.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", None])
def test_a_damaged_state_ends_in_one_sentence(again, name, content):
    path = again / "state" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = every_file(again)
    with pytest.raises(ProvisioningError, match="put back your backup"):
        provision(consortium(), again)
    assert every_file(again) == before


def test_a_first_provisioning_that_was_killed_leaves_nothing_in_the_way(made, tmp_path):
    state = tmp_path / "c" / "state"
    state.mkdir(parents=True)
    (state / "signing.pem").write_bytes((made[0] / "state/signing.pem").read_bytes())
    assert provision(consortium(), tmp_path / "c").new == EVERYBODY


def test_sealed_kits_stay_as_they_are(again, monkeypatch):
    monkeypatch.setattr("provisioning.archive._SCRYPT_N", 2**14)
    passphrase = b"correct horse battery"
    done = provision(consortium(), again, passphrase)
    assert all(path.name.endswith(".kit.locked") for path in done.archives.values())
    assert not list(again.glob("*.kit.zip"))
    before = every_file(again)
    provision(consortium(), again, passphrase)
    assert every_file(again) == before
    assert verify_kit(done.archives["site-a"], done.fingerprint, passphrase).good


def test_a_servers_jobs_stay_in_its_folder(again):
    kit = again / "kits/server"
    place_server_storage(kit)
    written = (kit / "local/resources.json").read_text()
    assert "nvflare/jobs-storage" not in written and str(kit.resolve() / "jobs-storage") in written
    assert json.loads(written)["class_allow_list"] == CLASS_ALLOW_LIST
    report = verify_kit(kit)
    assert report.good and any("local/resources.json" in note for note in report.notes)


def test_listing_says_who_expires_when(made):
    listing = list_kits(made[0])
    assert listing.fingerprint == made[1].fingerprint
    assert {each.name for each in listing.certificates} == {*EVERYBODY, ROOT}
    assert list_kits(made[0] / "state") == listing
    site = next(each for each in listing.certificates if each.name == "site-a")
    assert site.remark(NOW) == ""
    assert site.remark(NOW + timedelta(days=340)) == "expires soon: --renew site-a"
    assert site.remark(NOW + timedelta(days=366)) == "expired: --renew site-a"


def test_the_commands(tmp_path, fedspleen):
    (tmp_path / "c.yaml").write_text(TEXT)
    done = fedspleen("provision", "c.yaml")
    assert done.returncode == 0, done.stderr
    assert "new: trial/site-a.kit.zip" in done.stdout and "back up trial/state" in done.stdout
    listed = fedspleen("kit", "list", "trial")
    assert listed.returncode == 0 and "site-b" in listed.stdout
    (tmp_path / "c.yaml").write_text(TEXT.replace("  - {name: site-a, organisation: hospital_a}\n", ""))
    done = fedspleen("provision", "c.yaml")
    assert "no longer in the file: site-a" in done.stdout and "fedspleen kit revoke site-a" in done.stdout
    assert "as before: trial/server.kit.zip" in done.stdout and "back up" not in done.stdout
    (tmp_path / "c.yaml").write_text("name: [\n")
    wrong = fedspleen("provision", "c.yaml")
    assert wrong.returncode == 2 and "c.yaml:2: not valid YAML" in wrong.stderr and "Traceback" not in wrong.stderr
    nowhere = fedspleen("kit", "list", "nowhere")
    assert nowhere.returncode == 1 and "no consortium was provisioned here" in nowhere.stderr
