"""What is in deploy/: it parses, names commands, options, files and settings that exist, and FLARE takes it."""

import configparser
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from nvflare.app_opt.job_launcher.slurm import ClientSlurmJobLauncher
from nvflare.app_opt.job_launcher.study_runtime import load_study_runtime_file, resolve_study_runtime

from fl_app.site import SITE_FILE_VARIABLE, read_site
from provisioning.components import CLASS_ALLOW_LIST
from provisioning.consortium import parse_consortium
from provisioning.provision import provision
from tests.docs_commands import check_arguments, own_arguments
from tests.test_sites import Running, free_port

DEPLOY = Path(__file__).parents[1] / "deploy"
PROJECT = (DEPLOY.parent / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.*)"', PROJECT, re.M)[1]
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = [DEPLOY / "compose.server.yaml", DEPLOY / "compose.site.yaml"]
PODS = [DEPLOY / "kubernetes" / "server.yaml", DEPLOY / "kubernetes" / "site.yaml"]
CONSORTIUM = """\
name: recipes
server: {{hosts: [fl.example.org, localhost], port: {port}}}
sites: [{{name: site-1, organisation: hospital_1}}]
administrators: [{{email: lead@example.org, role: lead}}]
"""


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium")
    provision(parse_consortium(CONSORTIUM.format(port=free_port())), folder)
    return folder / "kits"


def name_of(path):
    return path.name


def read_unit(path):
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def pod_of(path):
    """The pod, and all its containers, of a Deployment."""
    [deployment] = [each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    return pod, [*pod["initContainers"], *pod["containers"]]


@pytest.mark.parametrize("path", UNITS, ids=name_of)
def test_a_unit_runs_a_command_that_exists_as_an_ordinary_user(path):
    unit = read_unit(path)
    assert check_arguments(own_arguments(unit["Service"]["ExecStart"].split())) == []
    assert unit["Service"]["User"] == "fedspleen" and unit["Service"]["ProtectSystem"] == "strict"
    # a kit that is refused is not tried for ever
    assert int(unit["Unit"]["StartLimitBurst"]) * int(unit["Service"]["RestartSec"]) < 15 * 60
    assert unit["Unit"]["StartLimitIntervalSec"] == "15min" and unit["Service"]["Restart"] == "on-failure"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="takes systemd")
@pytest.mark.parametrize("path", UNITS, ids=name_of)
def test_systemd_understands_every_line_of_a_unit(path, tmp_path):
    program = re.search(r"^ExecStart=(\S+)", path.read_text(), re.M)[1]
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace(program, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and path.name not in done.stderr, done.stderr


def test_the_image_holds_the_packages_and_nothing_else():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    packages = set(re.findall(r'"(\w+)\*"', re.search(r"^include = .*", PROJECT, re.M)[0]))
    assert copied == packages | {"requirements.lock", "pyproject.toml", "README.md", "LICENSE"}
    assert all((DEPLOY.parent / each).exists() for each in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == copied
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert 'ENTRYPOINT ["fedspleen"]' in lines and "\nfedspleen = " in PROJECT


@pytest.mark.parametrize("path", COMPOSE, ids=name_of)
def test_a_compose_file_starts_a_command_that_exists_and_mounts_what_it_names(path):
    [service] = yaml.safe_load(path.read_text())["services"].values()
    assert check_arguments(service["command"]) == []
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    assert {word for word in service["command"] if word.startswith("/")} == set(mounts)
    assert all(mount.get("read_only") for target, mount in mounts.items() if target == "/data")
    assert service["restart"] == "on-failure:5" and service["read_only"] and service["cap_drop"] == ["ALL"]
    assert (path.parent / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    assert service["image"].split(":")[1] == VERSION
    # a site opens no port
    assert ("ports" in service) == ("server" in path.name)


def test_the_gpu_is_given_to_the_service_of_the_sites_file():
    site, gpu = (yaml.safe_load((DEPLOY / f"compose.{name}.yaml").read_text()) for name in ("site", "gpu"))
    assert set(gpu["services"]) == set(site["services"])


@pytest.mark.parametrize("path", PODS, ids=name_of)
def test_a_pod_unpacks_the_kit_and_starts_with_commands_that_exist(path):
    pod, containers = pod_of(path)
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in containers:
        assert check_arguments(container["args"]) == []
        assert container["image"].endswith(f"/fedspleen:{VERSION}")
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsUser"] == 10001, "the image's user"
    [unpacked], [started] = ([word for word in each["args"] if word == "/fedspleen/kit"] for each in containers)
    assert unpacked == started
    assert containers[1]["readinessProbe"]["exec"]["command"][-1] == f"{started}/ready.fl"


@pytest.mark.parametrize("script", ["site.sbatch", "sbatch-with-gpu"])
def test_a_slurm_script_is_a_shell_script(script):
    path = DEPLOY / "slurm" / script
    subprocess.run(["bash", "-n", path], check=True)
    ours = [own_arguments(line.split()) for line in path.read_text().replace('"', "").splitlines() if "exec" in line]
    assert [check_arguments(each) for each in ours if each is not None] == ([[]] if script == "site.sbatch" else [])


def prepare(kit, output, config):
    """`nvflare deploy prepare` as the page shows it; the prepared kit's resources."""
    command = [Path(sys.executable).with_name("nvflare"), "deploy", "prepare", kit]
    done = subprocess.run(
        [*command, "--output", output, "--config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((output / "local" / "resources.json.default").read_text())


def test_flare_prepares_a_kit_for_slurm(kits, tmp_path):
    resources = prepare(kits / "site-1", tmp_path / "prepared", DEPLOY / "slurm" / "prepare.yaml")
    assert resources["class_allow_list"] == CLASS_ALLOW_LIST
    assert resources["class_list_enforcement_mode"] == "enforce" and not resources["allow_log_streaming"]
    [launcher] = [each for each in resources["components"] if each["id"] == "slurm_launcher"]
    assert ClientSlurmJobLauncher(**launcher["args"]).config.sandbox == "none"
    assert f"{SITE_FILE_VARIABLE}=" in launcher["args"]["setup"]
    assert launcher["args"]["executables"]["sbatch"].endswith("/deploy/slurm/sbatch-with-gpu")
    parent = tmp_path / "prepared" / "startup" / "parent.slurm"
    subprocess.run(["bash", "-n", parent], check=True)
    # the kit is verified first, and a job that is refused ends at once
    lines = [line for line in parent.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    [check] = [own_arguments(line.split()) for line in lines if line.startswith("fedspleen")]
    assert check[:2] == ["client", "check"] and check_arguments(check) == []


def test_flare_prepares_a_kit_for_kubernetes(kits, tmp_path):
    prepared = tmp_path / "prepared"
    resources = prepare(kits / "site-1", prepared, DEPLOY / "kubernetes" / "prepare.yaml")
    assert resources["class_allow_list"] == CLASS_ALLOW_LIST
    values = yaml.safe_load((prepared / "helm_chart" / "values.yaml").read_text())
    assert f"{values['image']['repository']}:{values['image']['tag']}" == pod_of(PODS[1])[1][0]["image"]
    runtime = prepared / "local" / "study_runtime.yaml"
    assert runtime.exists(), "which ours takes the place of"
    shutil.copy(DEPLOY / "kubernetes" / "study_runtime.yaml", runtime)
    study = resolve_study_runtime(load_study_runtime_file(str(runtime), launcher_mode="k8s"), "default", str(runtime))
    workspace = values["persistence"]["workspace"]["mountPath"]
    assert study.env[SITE_FILE_VARIABLE] == f"{workspace}/local/site.yaml"
    settings = read_site(DEPLOY / "kubernetes" / "site-settings.yaml")
    mounts = {mount.mount_path: mount.read_only for mount in study.datasets}
    assert mounts[str(settings.data)] and not mounts[str(settings.cache.parent)]
    assert settings.output.parent == settings.cache.parent


@pytest.mark.slow
def test_the_servers_unit_starts_a_server_of_any_name_and_ends_it_without_an_error(kits, tmp_path):
    kit = shutil.copytree(kits / "server", tmp_path / "server")
    arguments = own_arguments(
        read_unit(DEPLOY / "systemd" / "fedspleen-server.service")["Service"]["ExecStart"].split()
    )
    server = Running(*(str(kit) if word.startswith("/") else word for word in arguments), cwd=tmp_path)
    server.wait_for("server of recipes ready at fl.example.org or localhost")
    assert (kit / "ready.fl").exists(), "what the health checks look at"
    assert server.end(signal.SIGTERM) < 20, "TimeoutStopSec"
    assert server.process.returncode == 0 and not (kit / "ready.fl").exists()
