"""A server and two sites with real processes and mutual TLS on this machine: the job that the simulator runs."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fl_app.config import Job
from fl_app.deployment.connection import probe
from fl_app.deployment.kit import open_kit
from fl_app.errors import FederationError
from fl_app.job import build_flare_job
from fl_app.model_file import load_model
from fl_app.result import read_result
from fl_app.site import SiteSettings, write_site
from provisioning.consortium import parse_consortium
from provisioning.provision import provision
from server.administration import administration
from tests.federation import fedspleen as fedspleen_as_process
from tests.federation import processes_about, start_fedspleen, write_job, write_sites
from tests.test_consortium import fedspleen_in_process  # noqa: F401 - the fixture fedspleen
from tests.test_preflight import listening

pytestmark = pytest.mark.slow

LEAD = "lead@example.org"
SITES = ("site-1", "site-2")
SIMULATED = "flare/run/server/simulate_job/result"
CONSORTIUM = """\
name: {name}
server: {{hosts: [localhost], port: {port}}}
sites:
  - {{name: site-1, organisation: hospital_1}}
  - {{name: site-2, organisation: hospital_2}}
administrators:
  - {{email: lead@example.org, role: lead}}
  - {{email: guest@example.org, role: member}}
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def make_kits(folder, name="trial", port=None):
    provision(parse_consortium(CONSORTIUM.format(name=name, port=port or free_port())), folder)
    return folder / "kits"


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


class Running:
    """A started command with what it has printed so far."""

    def __init__(self, *arguments, cwd):
        self.started = time.monotonic()
        self.process = start_fedspleen(*arguments, cwd=cwd)
        self.lines, self.errors = [], []
        for stream, kept in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(target=self._read, args=(stream, kept), daemon=True).start()

    def _read(self, stream, kept):
        kept.extend(iter(stream.readline, ""))

    @property
    def text(self):
        return "".join(self.lines) + "".join(self.errors)

    def wait_for(self, words, seconds=30):
        end = time.monotonic() + seconds
        while words not in self.text:
            assert self.process.poll() is None and time.monotonic() < end, f"no {words!r} in: {self.text}"
            time.sleep(0.05)
        return time.monotonic() - self.started

    def end(self, number=signal.SIGTERM):
        """Seconds until the process has ended."""
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=30)
        return time.monotonic() - started


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    """Kits, data that nobody may write, settings, a job; a running server with two registered sites."""
    folder = tmp_path_factory.mktemp("sites")
    kits = make_kits(folder / "consortium")
    data = write_sites(folder / "data", site_1=7, site_2=6)
    for site in SITES:
        write_site(kits / site / "site.yaml", SiteSettings(data=data / site, threads=1, device="cpu"))
    write_job(folder / "job.yaml", federation={"rounds": 2})
    for path in sorted(data.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    started = {"server": Running("server", "start", kits / "server", cwd=folder)}
    seconds = {"server": started["server"].wait_for("ready at localhost")}
    for site in SITES:
        started[site] = Running("client", "start", kits / site, cwd=folder)
    for site in SITES:
        seconds[site] = started[site].wait_for(f"site {site} registered with server localhost")
    yield folder, kits, started, seconds
    for each in started.values():
        each.end()
    assert processes_about(folder) == []


@pytest.fixture(scope="module")
def run(consortium):
    """One job at the sites, submitted, followed and downloaded, and beside it in the simulator; what was printed.

    The simulator would give each of two sites one thread on two cores; here both have one anywhere.
    """
    folder, kits, _, _ = consortium
    environment = {"FEDSPLEEN_SITE_FILE": f"{kits}/{{site}}/site.yaml", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fl_app.job", folder / "flare", folder / "job.yaml", *SITES]
    with (folder / "simulator.log").open("wb") as log:
        simulator = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **environment}
        )
    try:
        done = fedspleen_as_process(
            "submit", folder / "job.yaml", "--kit", kits / LEAD, "--out", folder / "out", cwd=folder
        )
        assert done.returncode == 0, done.stdout + done.stderr
        end = time.monotonic() + 60
        while read_result(folder / SIMULATED / "result.json").status == "running" and time.monotonic() < end:
            time.sleep(0.2)
    finally:
        simulator.stdin.close()  # the simulator ends with whoever started it
        simulator.wait(timeout=30)
    return done.stdout


def test_start_to_registered_takes_seconds(consortium):
    print(consortium[3])
    assert max(consortium[3].values()) < 15, "5 s on an idle machine; tests run beside each other"


def test_the_downloaded_folder_is_the_simulators(consortium, run):
    out = consortium[0] / "out"
    result = read_result(out / "result.json")
    assert result.status == "finished" and len(result.rounds) == 2 and set(result.sites) == set(SITES)
    found = {path.name for path in out.iterdir()}
    assert found == {"result.json", "report.html", "audit.jsonl", "model", "logs", "tensorboard", "job.yaml"}
    assert len(list((out / "tensorboard").iterdir())) == 1, "the server's, in place of those that grew here"
    assert f"--logdir {out / 'tensorboard'}" in run
    assert {path.name for path in (out / "model").iterdir()} == {"best.safetensors", "last.safetensors"}
    for words in ("round 1/2", "round 2/2", "Held-out test cases", f"{result.final.mean_dice:.3f}"):
        assert words in run
    assert b"secretpatient" not in (out / "logs" / "server.log").read_bytes() + (out / "result.json").read_bytes()
    for site in SITES:
        assert len(list((consortium[1] / site / "output").rglob("test_cases.csv"))) == 1


def test_the_weights_are_the_simulators_bit_for_bit(consortium, run):
    folder = consortium[0]
    for name in ("best", "last"):
        here, info = load_model(folder / "out" / "model" / f"{name}.safetensors")
        there, other = load_model(folder / SIMULATED / "model" / f"{name}.safetensors")
        assert here.keys() == there.keys() and info.round == other.round
        assert all(torch.equal(here[key], there[key]) for key in here)
    real, simulation = (read_result(folder / each / "result.json") for each in ("out", SIMULATED))
    assert real.status == simulation.status == "finished" and real.final == simulation.final
    seconds = [[done.seconds for done in each.rounds] for each in (real, simulation)]
    print(f"seconds a round: sites {seconds[0]}, simulator {seconds[1]}")


def test_status_lists_sites_and_jobs(consortium, run, fedspleen):
    _, kits, _, _ = consortium
    told = json.loads(fedspleen("status", "--kit", kits / LEAD, "--json").stdout)
    assert set(told["sites"]) == set(SITES) and told["jobs"][0]["ended"] and told["jobs"][0]["submitter"] == LEAD
    done = fedspleen("status", "--kit", kits / LEAD)
    assert done.returncode == 0 and "connected sites: site-1, site-2" in done.stdout
    assert "FINISHED:COMPLETED" in done.stdout and "small" in done.stdout


def test_a_job_that_waits_for_sites_can_be_aborted(consortium, fedspleen):
    folder, kits, _, _ = consortium
    done = fedspleen("submit", folder / "job.yaml", "--kit", kits / LEAD, "--sites", "5", "--detach")
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    early = fedspleen("download", job_id, "--kit", kits / LEAD, "--out", folder / "early")
    assert early.returncode == 1 and "has not ended yet" in early.stderr, early.stderr
    done = fedspleen("abort", job_id, "--kit", kits / LEAD)
    assert done.returncode == 0 and "is being ended" in done.stdout, done.stderr


def test_who_may_only_look_cannot_submit(consortium, fedspleen):
    folder, kits, _, _ = consortium
    done = fedspleen("submit", folder / "job.yaml", "--kit", kits / "guest@example.org", "--detach")
    assert done.returncode == 1 and "takes the kit of a lead" in done.stderr and "Traceback" not in done.stderr


def test_a_job_with_code_or_an_unlisted_class_is_refused_and_nothing_runs(consortium, fedspleen, tmp_path):
    """Handed in with FLARE's own session, since `fedspleen submit` makes no such job."""
    _, kits, _, _ = consortium
    for name in ("code", "class"):
        build_flare_job(Job(name=name), 2).export_job(str(tmp_path))
    (tmp_path / "code/app/custom").mkdir()
    (tmp_path / "code/app/custom/evil.py").write_text("open('evil', 'w')")
    path = tmp_path / "class/app/config/config_fed_client.json"
    config = json.loads(path.read_text())
    config["components"] = [
        {"id": "x", "path": "subprocess.Popen", "args": {"args": ["touch", str(tmp_path / "evil")]}}
    ]
    path.write_text(json.dumps(config))
    for name, words in (("code", "brings code of its own"), ("class", "names subprocess.Popen, not on the list")):
        with (
            pytest.raises(FederationError, match=f"the server refuses the job: .*{words}"),
            administration(kits / LEAD, LEAD, "the server") as admin,
        ):
            admin.submit(tmp_path / name)
    done = fedspleen("status", "--kit", kits / LEAD)
    assert "connected sites: site-1, site-2" in done.stdout, "the sites are unharmed"
    assert "code" not in done.stdout and not list(tmp_path.rglob("evil"))


def self_signed(folder):
    """A certificate that nobody vouches for, and its key, for somebody who calls himself site-1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-1")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    (folder / "self.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "self.key").write_bytes(private)
    return folder / "self.crt", folder / "self.key"


def test_who_comes_without_tls_or_with_a_certificate_of_his_own_is_turned_away(consortium, tmp_path):
    """The server's log says who and why; nothing else happens to it."""
    _, kits, started, _ = consortium
    kit, log = open_kit(kits / "site-1", "site"), kits / "server" / "log.txt"
    certificate = self_signed(tmp_path)

    def speak(plain, *pair):
        """In plain text, or in TLS with a certificate or without."""
        with plain:
            if pair != (None,):
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                if pair:
                    context.load_cert_chain(*pair)
                plain = context.wrap_socket(plain)
            plain.sendall(b"GET /f3 HTTP/1.1\r\nHost: x\r\n\r\n")
            return plain.recv(100)

    for pair, words in (
        ((None,), "it does not speak TLS (HTTP_REQUEST)"),
        ((), "it presents no certificate"),
        (certificate, "its certificate is not one of this consortium, or not valid now (self-signed certificate)"),
    ):
        with suppress(ssl.SSLError, ConnectionError):  # refused, which some systems tell and others do not
            assert speak(socket.create_connection((kit.host, kit.port), 5), *pair) == b""
        wait_until(lambda words=words: "is refused: " + words in log.read_text())
    assert started["server"].process.poll() is None and probe(kit).accepted


def test_a_proxy_that_ends_tls_is_named_as_such(consortium, tmp_path):
    """A load balancer with a certificate of its own, which goes on to the server in plain text."""
    _, kits, _, _ = consortium
    kit = open_kit(kits / "site-1", "site")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))

    def end_tls(connection):
        with context.wrap_socket(connection, server_side=True) as inside:
            inside.recv(1000)

    with listening(end_tls) as port:
        connection = probe(replace(kit, port=port))
    (finding,) = connection.findings
    assert finding.code == "server-untrusted" and "(site-1)" in finding.problem and "opens TLS" in finding.remedy


@pytest.mark.promise(
    "site: the same kit started twice",
    "the second start is refused in one sentence",
)
def test_the_same_kit_does_not_run_twice(consortium, fedspleen):
    _, kits, _, _ = consortium
    for kind, name in (("server", "server"), ("client", "site-1")):
        done = fedspleen(kind, "start", kits / name)
        assert done.returncode == 1 and f"{name} is running already (process" in done.stderr, done.stderr
        assert f"fedspleen {kind} stop" in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_unknown_job_is_one_sentence(consortium, fedspleen):
    _, kits, _, _ = consortium
    done = fedspleen("follow", "no-such-job", "--kit", kits / LEAD)
    assert done.returncode == 1 and "there is no such job" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_second_server_on_the_port_is_refused(consortium, fedspleen):
    folder, kits, _, _ = consortium
    done = fedspleen("server", "start", kits / "server", "--workspace", folder / "second")
    assert done.returncode == 1 and "cannot be opened" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.promise("port: another authority's or another site's certificate")
def test_another_authoritys_certificate_is_refused(consortium, tmp_path, fedspleen):
    """A whole, valid kit of another consortium that names this server's address."""
    folder, kits, _, _ = consortium
    other = make_kits(tmp_path / "other", "other", open_kit(kits / "site-1", "site").port)
    done = fedspleen("client", "start", other / "site-1", "--data", folder / "data" / "site-1")
    assert done.returncode == 1 and "another authority" in done.stderr and len(done.stderr.splitlines()) == 1
    own = open_kit(kits / "site-1", "site")
    namesake = make_kits(tmp_path / "namesake", own.report.consortium, own.port)
    done = fedspleen("status", "--kit", namesake / LEAD)
    assert done.returncode == 1 and "another consortium that is called" in done.stderr, done.stderr


@pytest.mark.promise(
    "port: another authority's or another site's certificate",
    "refused, and said which",
)
def test_another_sites_certificate_is_refused(consortium, tmp_path, fedspleen):
    """By the kit's check; and, where somebody goes round it, by the server."""
    folder, kits, _, _ = consortium
    forged = shutil.copytree(kits / "site-1", tmp_path / "forged")
    for name in ("client.crt", "client.key"):
        shutil.copy(kits / "site-2" / "startup" / name, forged / "startup" / name)
    done = fedspleen("client", "start", forged, "--data", folder / "data" / "site-1")
    assert done.returncode == 1 and "for site-2, in a kit for site-1" in done.stderr
    command = [sys.executable, "-m", "fl_app.deployment.process", "site", forged, "site-1", "x", tmp_path / "ready"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    refusal = "authenticated as 'site-2' but claimed endpoint 'site-1'"
    wait_until(lambda: refusal in (kits / "server" / "log.txt").read_text())
    process.stdin.close()
    process.wait(timeout=20)
    assert not (tmp_path / "ready").exists()


def test_a_site_that_is_locked_out_while_it_runs_ends_and_says_why(consortium):
    folder, kits, started, _ = consortium
    done = fedspleen_as_process("kit", "revoke", "site-2", "--admin", kits / LEAD)
    assert done.returncode == 0 and "locked out" in done.stdout, done.stderr
    assert started["site-2"].process.wait(60) == 1
    wait_until(lambda: "the server has locked this site out" in started["site-2"].text)
    again = fedspleen_as_process("client", "start", kits / "site-2")
    assert again.returncode == 1 and "locked this site out" in again.stderr and "Traceback" not in again.stderr
    undone = fedspleen_as_process("kit", "revoke", "site-2", "--admin", kits / LEAD, "--undo")
    assert undone.returncode == 0, undone.stderr
    started["site-2"] = Running("client", "start", kits / "site-2", cwd=folder)
    started["site-2"].wait_for("registered with server")


def test_check_finds_nothing_wrong_with_a_running_server(consortium, fedspleen):
    folder, kits, _, _ = consortium
    done = fedspleen("client", "check", kits / "site-1", "--job", folder / "job.yaml", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["good"], report["findings"]
    assert "accepts this site's certificate" in report["facts"]["connection"] and report["unchecked"] == []
    assert abs(float(report["facts"]["clock"].split()[0])) < 2


@pytest.mark.promise("server: stopped (SIGTERM, `server stop`)")
def test_everything_ends_within_15_seconds_of_a_signal_and_the_result_is_found(consortium, fedspleen):
    """The server is ended in the middle of a job, and started again: the job waits, goes on, and can be aborted."""
    folder, kits, started, _ = consortium
    job = write_job(folder / "longer.yaml", federation={"rounds": 1000})
    done = fedspleen("submit", job, "--kit", kits / LEAD, "--detach")
    job_id = done.stdout.strip()
    follower = Running("follow", job_id, "--kit", kits / LEAD, "--tensorboard", folder / "curves", cwd=folder)
    follower.wait_for("round    2/1000", seconds=60)
    assert started["server"].end() < 15 and started["server"].process.returncode == 0
    assert "server stopped" in started["server"].text and processes_about(kits / "server") == []
    started["server"] = Running("server", "start", kits / "server", cwd=folder)
    started["server"].wait_for("ready at localhost")
    done = fedspleen("abort", job_id, "--kit", kits / LEAD)
    assert done.returncode == 0, done.stderr
    follower.wait_for("has ended: FINISHED:ABORTED", seconds=60)
    assert follower.process.wait(10) == 1, "scripts must not take it for a success"
    assert list((folder / "curves").glob("events.*")), "curves grew where they were followed"
    done = fedspleen("download", job_id, "--kit", kits / LEAD, "--out", folder / "aborted")
    assert done.returncode == 1 and "the job was" in done.stderr and "Traceback" not in done.stderr
    assert len(read_result(folder / "aborted" / "result.json").rounds) >= 2
    started["site-2"].process.send_signal(signal.SIGINT)
    stopped = fedspleen("client", "stop", kits / "site-1")
    assert stopped.returncode == 0 and "site-1 stopped after" in stopped.stdout, stopped.stderr
    for site in SITES:
        assert started[site].end(signal.SIGINT) < 15 and started[site].process.returncode == 0, started[site].text
        assert f"{site} stopped" in started[site].text and processes_about(kits / site) == []
    nothing = fedspleen("client", "stop", kits / "site-1")
    assert nothing.returncode == 1 and "nothing is running with this kit" in nothing.stderr
    started["server"].process.kill()  # it goes without a word, and so do its own processes; then all start again
    started["server"].process.wait()
    started["server"] = Running("server", "start", kits / "server", cwd=folder)
    for site in SITES:
        started[site] = Running("client", "start", kits / site, cwd=folder)
    for site in SITES:
        started[site].wait_for("registered with server")
