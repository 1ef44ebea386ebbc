"""A server and two sites as real processes over mutual TLS, which can be killed and started again."""

import time
from contextlib import suppress

import psutil

from fl_app.result import read_result
from fl_app.site import SiteSettings, write_site
from provisioning.consortium import parse_consortium
from provisioning.provision import provision
from tests.federation import write_sites
from tests.relay import Relay
from tests.test_sites import LEAD, SITES, Running, free_port

LIMIT = 600  # seconds that anything may take on a machine that does much else; good runs take a fraction
CONSORTIUM = """\
name: trial
server: {{hosts: [localhost], port: {port}, listen_port: {listen}}}
sites:
  - {{name: site-1, organisation: hospital_1}}
  - {{name: site-2, organisation: hospital_2}}
administrators:
  - {{email: lead@example.org, role: lead}}
"""


class Consortium:
    """Kits, data and what runs with them."""

    def __init__(self, folder):
        self.folder = folder
        ports = free_port(), free_port()
        provision(parse_consortium(CONSORTIUM.format(port=ports[0], listen=ports[1])), folder / "consortium")
        self.kits = folder / "consortium" / "kits"
        self.relay = Relay(*ports)
        data = write_sites(folder / "data", site_1=4, site_2=5)
        for site in SITES:
            write_site(self.kits / site / "site.yaml", SiteSettings(data=data / site, threads=1, device="cpu"))
        self.started = {}
        self.submitted = []

    def start(self, name):
        command = ("server", "start") if name == "server" else ("client", "start")
        self.started[name] = Running(*command, self.kits / name, cwd=self.folder)
        return self.started[name]

    def ready(self, name):
        words = "ready at localhost" if name == "server" else f"site {name} registered"
        return self.started[name].wait_for(words, LIMIT)

    def kill(self, name):
        """Kill -9, everything of it at once, as when the machine loses power."""
        family = psutil.Process(self.started[name].process.pid)
        for each in [family, *family.children(recursive=True)]:
            each.kill()
        self.started[name].process.wait(timeout=10)

    def kill_job(self, name, job_id):
        """Kill -9 the process of a job only; whether there was one."""
        family = psutil.Process(self.started[name].process.pid).children(recursive=True)
        module = "runner_process" if name == "server" else "worker_process"
        killed = []
        for each in family:
            with suppress(psutil.NoSuchProcess):
                if module in " ".join(each.cmdline()) and job_id in each.cmdline():
                    each.kill()
                    killed.append(each)
        return bool(killed)

    def submit(self, job, out):
        """Submit, follow and download, as one command; its first line names the job."""
        self.submitted.append(Running("submit", job, "--kit", self.kits / LEAD, "--out", out, cwd=self.folder))
        return self.submitted[-1]

    def identify(self, running):
        running.wait_for("submitted", LIMIT)
        return running.text.split()[1]

    def results(self, job_id):
        return self.kits / "server" / "results" / "server" / job_id / "result" / "result.json"

    def wait_for_round(self, job_id, number):
        """Wait until a round is under way; seconds since the call."""
        started = time.monotonic()
        path = self.results(job_id)
        while not (path.exists() and len(read_result(path).rounds) >= number):
            assert time.monotonic() - started < LIMIT, f"round {number} has not begun"
            time.sleep(0.05)
        return time.monotonic() - started

    def wait_for_more(self, job_id, rounds=1):
        """Wait for other rounds than those under way, or the end; seconds since the call."""
        path = self.results(job_id)
        if not path.exists():
            return 0.0
        result = read_result(path)
        return self.wait_for_round(job_id, min(result.rounds_asked, len(result.rounds) + rounds))
