"""The job files of the documentation can be read by what reads them; no such cluster is here to run them."""

import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/several-processes.md"


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


def test_the_slurm_job_is_a_shell_script():
    script = block("bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)  # noqa: S607  # of the path
    asked = set(re.findall(r"\b(RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)=", script))
    assert asked == {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def test_the_kubernetes_job_starts_as_many_ranks_as_it_says_where_they_find_one_another():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(block("yaml"))
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    (container,) = pod["containers"]
    told = {one["name"]: one["value"] for one in container["env"]}
    assert all(isinstance(value, str) for value in told.values())
    assert int(told["WORLD_SIZE"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert told["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert container["command"][2].startswith("RANK=$JOB_COMPLETION_INDEX exec ")
