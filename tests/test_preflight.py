"""What `fedspleen client check` says of a connection, a kit, data, folders and versions; no FLARE is started."""

import json
import re
import shutil
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import pytest
import torch

from fl_app.config import Job
from fl_app.config_file import load_job
from fl_app.deployment.connection import probe
from fl_app.deployment.kit import open_kit
from fl_app.deployment.participant import site_settings
from fl_app.deployment.preflight import check_client
from fl_app.errors import ConfigError, FederationError, KitError, UsageError
from fl_app.messages import Saving, SiteReady
from fl_app.site import SiteSettings
from fl_app.training.fitting import training_memory
from fl_app.training.trainer import ready_network
from fl_app.versions import incompatibility, own_version
from provisioning.consortium import parse_consortium
from provisioning.provision import provision
from server.participants import Participants
from server.record import Record
from tests.federation import fedspleen, write_job, write_sites

TEXT = """\
name: {name}
server: {{hosts: [{host}], port: {port}}}
sites: [{{name: site-1, organisation: hospital_1}}]
administrators: [{{email: lead@example.org, role: lead}}]
certificates: {{kit_days: {days}}}
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def make_kits(folder, name="trial", host="localhost", port=1, days=300, now=None):
    text = TEXT.format(name=name, host=host, port=port, days=days)
    provision(parse_consortium(text), folder, now=now)
    return folder / "kits"


@contextmanager
def listening(answer):
    """A port on which every connection is handed to a function."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        over = threading.Event()

        def serve():
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except (TimeoutError, OSError):
                    continue
                with connection:
                    connection.settimeout(5)
                    try:
                        answer(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()


def tls(kits, trust=None, hours=0):
    """Answers as the server of some kits does, with a clock of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    startup = kits / "server" / "startup"
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    context.load_verify_locations((trust or kits) / "server" / "startup" / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    def answer(connection):
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1000)
            now = datetime.now(timezone.utc) + timedelta(hours=hours)
            secure.sendall(f"HTTP/1.1 404 Not Found\r\nDate: {now:%a, %d %b %Y %H:%M:%S GMT}\r\n\r\n".encode())

    return answer


def dialled(kits, port):
    """The connection of site-1's kit, to another port than the kit's."""
    kit = open_kit(kits / "site-1", "site")
    return probe(type(kit)(kit.folder, kit.report, kit.host, port, kit.scheme, kit.fedspleen))


def only(connection):
    (finding,) = connection.findings
    assert finding.problem and finding.remedy and not connection.accepted
    return finding


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Kits of another consortium."""
    return make_kits(tmp_path_factory.mktemp("others"), "other")


@pytest.fixture
def data(tmp_path):
    return write_sites(tmp_path / "data", site_1=4) / "site-1"


def test_a_name_that_does_not_resolve(tmp_path):
    kits = make_kits(tmp_path, host="no-such-host.invalid")
    connection = probe(open_kit(kits / "site-1", "site"))
    assert only(connection).code == "name-unknown" and connection.reached == ()


def test_a_closed_port_is_no_error_since_the_server_may_come(kits):
    connection = dialled(kits, free_port())
    assert (only(connection).code, only(connection).severity) == ("port-closed", "warning")
    assert connection.reached == ("name",) and connection.may_come


def test_behind_a_proxy_only_grpc_is_not_dialled_directly(kits, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    kit = open_kit(kits / "site-1", "site")
    through = probe(type(kit)(kit.folder, kit.report, "fl.example.org", 443, "grpc", kit.fedspleen))
    assert "proxy.example.org" in through.proxy and through.findings[0].code == "proxy"
    assert dialled(kits, free_port()).proxy is None


def test_plain_text_is_named_with_its_usual_cause(kits):
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        connection = dialled(kits, port)
    finding = only(connection)
    assert finding.code == "plain-text" and "WRONG_VERSION_NUMBER" in finding.problem
    assert "load balancer or proxy that ends TLS" in finding.remedy and not connection.may_come


def test_a_port_that_says_nothing(kits, monkeypatch):
    monkeypatch.setattr("fl_app.deployment.connection._TIMEOUT_SECONDS", 0.3)
    over = threading.Event()
    with listening(lambda connection: over.wait(2)) as port:
        assert only(dialled(kits, port)).code == "no-tls"
        over.set()


def test_a_port_that_hangs_up(kits):
    with listening(lambda connection: None) as port:
        assert only(dialled(kits, port)).code == "tls-failed"


def test_a_server_of_another_authority_is_named(kits, others):
    with listening(tls(others)) as port:
        finding = only(dialled(kits, port))
    assert finding.code == "server-untrusted" and "TLS inspection" in finding.remedy
    assert "(other" in finding.problem


def test_a_server_that_refuses_the_sites_certificate(kits, others):
    with listening(tls(kits, trust=others)) as port:
        finding = only(dialled(kits, port))
    assert finding.code == "certificate-refused" and "another authority" in finding.problem


def test_who_is_not_the_server_is_not_believed(kits, tmp_path):
    """A site's certificate at the server's port: of the right authority, of the wrong kind."""
    fake = shutil.copytree(kits, tmp_path / "fake")
    for suffix in ("crt", "key"):
        shutil.copy(kits / "site-1/startup" / f"client.{suffix}", fake / "server/startup" / f"server.{suffix}")
    with listening(tls(fake)) as port:
        assert only(dialled(kits, port)).code in ("not-the-server", "server-untrusted")


def test_the_server_accepts_and_the_clocks_agree(kits):
    with listening(tls(kits)) as port:
        connection = dialled(kits, port)
    assert connection.accepted and connection.findings == () and abs(connection.clock) < 2


def test_a_clock_that_is_an_hour_late(kits):
    with listening(tls(kits, hours=1)) as port:
        connection = dialled(kits, port)
    assert connection.accepted and connection.findings[0].code == "clock"
    assert re.search(r"36\d\d s behind|3599 s behind", connection.findings[0].problem)


def test_an_expired_certificate_is_found_without_the_server(tmp_path, data):
    kits = make_kits(tmp_path, days=10, now=datetime.now(timezone.utc) - timedelta(days=11))
    report = check_client(kits / "site-1", site_settings(kits / "site-1", data, None), Job())
    assert not report.good and "expired on" in report.findings[0].problem and report.findings[0].remedy
    assert "the kit is not to be used" in report.unchecked[0]
    with pytest.raises(KitError, match="expired on"):
        open_kit(kits / "site-1", "site")


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path, data):
    kits = make_kits(tmp_path, days=20, port=free_port())
    report = check_client(kits / "site-1", site_settings(kits / "site-1", data, None), Job())
    assert report.good and {"certificate-expires", "port-closed"} <= {finding.code for finding in report.findings}
    assert any("clock" in what for what in report.unchecked)
    assert any("TLS works" in what for what in report.unchecked), "it says what could not be checked"
    assert {"site", "server", "certificate", "connection", "data", "device", "cache", "versions"} <= set(report.facts)


def test_all_findings_come_at_once_and_scripts_get_an_exit_code(kits, data):
    next((data / "labelsTr").iterdir()).unlink()
    settings = data.parent / "site.yaml"
    settings.write_text(f"data: {data}\ndevice: cuda:99\ncache: {settings}/cache\n")
    done = fedspleen("client", "check", kits / "site-1", "--site", settings, "--json")
    report = json.loads(done.stdout)
    found = {finding["code"] for finding in report["findings"]}
    assert done.returncode == 1 and not report["good"]
    assert {"port-closed", "device", "folder"} <= found and len(found) >= 4, found
    assert all(finding["remedy"] for finding in report["findings"])


@pytest.mark.parametrize(("share", "severity"), [(1.01, None), (0.99, None), (0.1, "error")])
def test_a_job_is_tried_within_the_memory_budget(kits, data, share, severity):
    job = load_job(write_job(kits.parent / "job.yaml", data={"patch_voxels": [32, 32, 16]}))
    device = torch.device("cpu")
    budget = share * training_memory(ready_network(job, device), job, device) / 2**30
    settings = SiteSettings(data=data, device="cpu", memory_budget_gib=budget)
    found = check_client(kits / "site-1", settings, job)
    assert ("computed again" in found.facts["training"]) == (share < 1)
    told = [each for each in found.findings if each.code == "memory-budget"]
    assert [each.severity for each in told] == ([severity] if severity else [])
    assert not told or ("at least" in told[0].problem and "search.strategy: width" in told[0].remedy)


def test_a_check_writes_nothing(tmp_path, data):
    kit = make_kits(tmp_path / "kits", port=free_port()) / "site-1"
    before = sorted(tmp_path.rglob("*"))
    check_client(kit, site_settings(kit, data, None), Job())
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_kits_are_one_sentence(kits, data):
    for arguments, code, words in (
        (("client", "start", kits / "server", "--data", data), 2, "the kit of a server"),
        (("client", "start", data, "--data", data), 1, "not a kit"),
        (("client", "start", kits / "site-1"), 2, "--data is missing"),
        (("server", "start", kits / "nowhere"), 2, "not the folder of a kit"),
        (("status", "--kit", kits / "lead@example.org"), 1, "nothing listens at"),
    ):
        done = fedspleen(*arguments)
        assert done.returncode == code and words in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_site_settings_come_from_beside_the_kit_and_the_command_line_wins(tmp_path):
    (tmp_path / "site.yaml").write_text("data: /data/here\nthreads: 3\ncache: /cache\n")
    settings = site_settings(tmp_path, None, None)
    assert (str(settings.data), settings.threads, str(settings.cache)) == ("/data/here", 3, "/cache")
    assert settings.output == tmp_path / "output"
    assert site_settings(tmp_path, tmp_path / "other", None).data == tmp_path / "other"
    (tmp_path / "site.yaml").write_text("data: /data\ndevise: cpu\n")
    with pytest.raises(ConfigError, match="devise"):
        site_settings(tmp_path, None, None)
    with pytest.raises(UsageError, match="data"):
        site_settings(tmp_path / "empty", None, None)
    assert isinstance(site_settings(tmp_path / "empty", tmp_path, None), SiteSettings)


@pytest.mark.parametrize(("theirs", "refused"), [("0.1.0", 0), ("0.1.7", 0), ("0.2.0", 1), ("1.1.0", 1), ("", 1)])
def test_another_major_or_minor_version_is_refused_with_both_named(theirs, refused):
    reason = incompatibility(theirs, "0.1.3")
    assert bool(reason) == bool(refused)
    if reason:
        assert "0.1.3" in reason and (theirs or "unknown version") in reason


def test_a_port_in_use_is_one_sentence():
    from fl_app.deployment.participant import _check_port

    with listening(lambda connection: None) as port:
        kit = type("Kit", (), {"host": "127.0.0.1", "port": port})
        with pytest.raises(FederationError, match="cannot be opened"):
            _check_port(kit)


@pytest.mark.parametrize(("host", "address"), [("localhost", "127.0.0.1"), ("fl.example.org", "0.0.0.0")])
def test_a_server_listens_on_loopback_or_on_all_interfaces_whatever_its_name_is(tmp_path, host, address):
    assert open_kit(make_kits(tmp_path, host=host) / "server", "server").host == address


@pytest.mark.promise(
    "site: another version of the software",
    "left out before the first round; both versions are named",
)
def test_the_server_leaves_out_a_site_of_another_version(tmp_path):
    job = Job(federation={"min_sites": 1})
    ready = SiteReady(
        training_cases=3,
        validation_cases=1,
        test_cases=1,
        warnings=0,
        device="cpu",
        precision="fp32",
        versions={"fedspleen": own_version()},
        restored=None,
        saving=Saving(),
        search=None,
        seconds=1,
    ).model_dump()
    # what another version says may look different altogether
    reports = {"north": ready, "south": {"versions": {"fedspleen": "99.0.1"}, "unheard_of": 1}}

    class Told:
        """A channel whose sites have said it all before."""

        def ask(self, task, payloads, exchange, answer):
            for site in payloads:
                exchange.receive(site, lambda site=site: answer(site, {}, reports[site]))
            exchange.close()

    record = Record(tmp_path / "result.json", job)
    sites = Participants(Told(), job.federation, record, dict)
    sites.prepare(["north", "south"])
    assert sites.names == ["north"]
    assert re.search(rf"99\.0\.1, the server {own_version()}", record.result.refused["south"])
