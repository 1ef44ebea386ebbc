"""Prediction by Slurm jobs; Slurm's commands are put in place, and run a job's script as a process."""

import os
import sys

import nibabel
import numpy as np
import pytest

from fl_app.errors import ConfigError
from fl_app.prediction.slurm import read_slurm_settings, slurm_cluster
from tests.federation import fedspleen
from tests.test_predict import write_model, write_scan

SBATCH = """#!/bin/sh
if [ "$1" = --test-only ]; then
    grep -q -- '-p gpu' "$2" || { echo 'sbatch: error: invalid partition specified' >&2; exit 1; }
    exit 0
fi
# as Slurm does, since Dask removes the script
script=$(mktemp) && cp "$1" "$script"
exec 3>&2
RUN >/dev/null 2>&1 3>&- &
echo "Submitted batch job $!"
"""
SQUEUE = """#!/bin/sh
for argument; do case $argument in --jobs=*) jobs=${argument#--jobs=};; esac; done
# one that has ended stays in the table until whoever adopted it looks
for job in $(echo "$jobs" | tr , ' '); do grep -q '^State:.[^Z]' "/proc/$job/status" 2>/dev/null && echo RUNNING; done
exit 0
"""
SCANCEL = """#!/bin/sh
kill "$@" 2>/dev/null
"""


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text("workers: 2\ncores: 1\nmemory_gb: 2\nhours: 0.5\npartition: gpu\n")
    return path


def predict(folder, settings, jobs):
    """Predict a scan where Slurm runs its jobs by such a command; what became of it."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, text in (("sbatch", SBATCH.replace("RUN", jobs)), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    model = write_model(folder / "model.safetensors")
    image, _ = write_scan(folder / "ct.nii.gz", size=3)
    path = {**os.environ, "PATH": f"{commands}:/usr/bin:/bin"}
    return fedspleen("predict", model, image, "--out", folder / "out", "--slurm", settings, env=path)


@pytest.mark.slow
def test_jobs_of_slurm_give_the_result_of_one_process(tmp_path, settings):
    done = predict(tmp_path, settings, 'setsid sh "$script"')
    assert done.returncode == 0, done.stderr
    alone = fedspleen("predict", tmp_path / "model.safetensors", tmp_path / "ct.nii.gz", "--out", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    one, other = (
        np.asarray(nibabel.load(tmp_path / folder / "ct_label.nii.gz").dataobj) for folder in ("alone", "out")
    )
    assert (one != other).mean() < 1e-4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ct_label.nii.gz", "volumes.csv"]


@pytest.mark.slow
def test_jobs_that_end_at_once_do_not_keep_anybody_waiting(tmp_path, settings):
    done = predict(tmp_path, settings, "true")
    assert done.returncode == 1
    assert "the Slurm jobs have ended before their work was done" in done.stderr and "Traceback" not in done.stderr


def test_what_slurm_refuses_is_said_in_one_sentence(tmp_path, settings):
    settings.write_text("workers: 2\npartition: long\n")
    done = predict(tmp_path, settings, "false")
    assert done.returncode == 2 and not (tmp_path / "out" / "slurm_logs").exists()
    assert f"{settings}: Slurm takes no such job: invalid partition specified" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_jobs_that_slurm_refuses_after_all_end_the_command(tmp_path, settings):
    done = predict(tmp_path, settings, "echo 'sbatch: error: the queue is full' >&3; exit 1;")
    assert done.returncode == 2, done.stderr
    assert f"{settings}: Slurm took none of the jobs: the queue is full" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and not (tmp_path / "out" / "slurm_logs").exists()


def test_a_refusal_without_a_word_is_told_too(tmp_path, settings):
    done = predict(tmp_path, settings, "exit 1;")
    assert done.returncode == 2, done.stderr
    assert f"{settings}: Slurm took none of the jobs: it gave no reason" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_slurm_there_is_one_sentence(tmp_path, settings):
    model = write_model(tmp_path / "model.safetensors")
    image, _ = write_scan(tmp_path / "ct.nii.gz")
    away = {**os.environ, "PATH": str(tmp_path)}
    done = fedspleen("predict", model, image, "--out", tmp_path / "out", "--slurm", settings, env=away)
    assert done.returncode != 0 and "there is no sbatch here" in done.stderr and "Traceback" not in done.stderr


def test_slurm_is_asked_for_what_the_settings_say(tmp_path):
    """Nothing is submitted: only what would be is looked at."""
    path = tmp_path / "slurm.yaml"
    path.write_text("workers: 3\ncores: 8\nmemory_gb: 16\nhours: 1.5\npartition: gpu\ndirectives: ['--gres=gpu:1']\n")
    settings = read_slurm_settings(path)
    with slurm_cluster(settings, tmp_path / "logs") as cluster:
        script = cluster.job_script()
    for line in ("-p gpu", "--cpus-per-task=8", "--mem=15G", "-t 01:30:00", "--gres=gpu:1"):
        assert line in script, script
    assert sys.executable in script and settings.workers == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [("cores: 2", "workers: Field required"), ("workers: 1\nqueue: x", "queue: Extra"), ("[", "is not YAML")],
)
def test_mistakes_in_the_settings_of_slurm_are_named(tmp_path, text, words):
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_slurm_settings(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_slurm_settings(tmp_path / "none.yaml")
