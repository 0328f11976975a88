"""The files in cluster/ are valid for the programs that read them, as far as tests can tell without those programs."""

import json
import re
import shlex
import shutil
import socket
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from raysweep import space
from raysweep.cli import parse
from raysweep.preparation import shipped_spaces
from raysweep.results.credentials import is_uri, join
from tests.support import PATIENCE, ROOT

CLUSTER = ROOT / "cluster"
# The ray.io/v1 fields that KubeRay's reference (1.5.1 and newer) documents for these objects.
RAY_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
RAY_CLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "rayVersion",
    "suspend",
    "upgradeStrategy",
    "workerGroupSpecs",
}
HEAD_GROUP = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKER_GROUP = {
    "groupName",
    "idleTimeoutSeconds",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "rayStartParams",
    "replicas",
    "scaleStrategy",
    "suspend",
    "template",
}
CONTAINER = {"args", "command", "env", "envFrom", "image", "lifecycle", "name", "ports", "resources", "volumeMounts"}


@pytest.fixture(scope="module")
def manifests():
    return {entry["kind"]: entry for entry in yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text())}


def groups(manifests):
    cluster = manifests["RayJob"]["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("name", ["slurm.sbatch", "try_slurm.sh"])
def test_scripts_parse(name):
    assert subprocess.run(["bash", "-n", CLUSTER / name], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["slurm.sbatch", "try_slurm.sh"])
def test_shellcheck_finds_nothing(name):
    checked = subprocess.run(["shellcheck", "-s", "bash", CLUSTER / name], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_options_of_sbatch_come_before_its_first_command():
    lines = (CLUSTER / "slurm.sbatch").read_text().splitlines()
    command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert options
    assert max(options) < command, "Slurm reads no options after the first command"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["alpha.yaml", "--name", "a"], "give --output DIR"),
        (["alpha.yaml", "--output", "/shared"], "give --output DIR"),
        ([], "give --output DIR"),
    ],
)
def test_a_job_that_could_not_find_its_sweep_again_is_refused(arguments, words, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    for program in (python, python.parent / "ray"):
        program.write_text("#!/bin/sh\nexit 99\n")
        program.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": str(python)}
    job = ["bash", str(CLUSTER / "slurm.sbatch"), *arguments]
    process = subprocess.run(job, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert words in process.stderr


PYTHON = """#!/bin/sh
case $1 in
    -c) echo token ;;
    -) cat >/dev/null ;;
    *run_sweep.py) shift; printf '%s\\n' "$*" >>"$CALLS" ;;
esac
"""
SRUN = """#!/bin/sh
case $* in *--block*) exec sleep 600 ;; esac
"""


@pytest.mark.parametrize(
    ("output", "restarts"),
    [
        ("/shared/runs", 1),
        ("/shared/what?", 1),
        ("s3://bucket/prefix", 1),
        ("s3://bucket/prefix?region=eu-west-1", 1),
        ("s3://bucket/prefix/?region=eu-west-1&scheme=http", 1),
        ("s3://bucket?region=eu-west-1", 1),
        ("s3://bucket/prefix?region=eu-west-1", 0),
    ],
)
def test_a_job_that_slurm_runs_again_resumes_its_sweep(output, restarts, tmp_path):
    """The job runs with programs in place of Slurm's and Ray's, and a `run_sweep.py` that notes its arguments."""
    programs = {"python": PYTHON, "ray": "#!/bin/sh\n", "srun": SRUN, "scontrol": "#!/bin/sh\necho node\n"}
    for name, content in programs.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    for job in range(5000):
        with suppress(OSError):  # another program may use the port
            head = socket.create_server(("127.0.0.1", 20000 + 2 * job))  # the script waits until Ray's head listens
            break
    with head:
        environment = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "CALLS": str(tmp_path / "calls"),
            "HEAD_IP": "127.0.0.1",
            "PYTHON": str(tmp_path / "python"),
            "SLURM_CPUS_ON_NODE": "1",
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "node",
            "SLURM_RESTART_COUNT": str(restarts),
            "SLURM_SUBMIT_DIR": str(ROOT),
        }
        given = ["alpha.yaml", "--output", output, "--name", "cifar"]
        process = subprocess.run(
            ["bash", str(CLUSTER / "slurm.sbatch"), *given], env=environment, timeout=PATIENCE, check=False
        )
    assert process.returncode == 0
    place = join(output, "cifar") if is_uri(output) else f"{output}/cifar"
    again = [f"--resume {place} --dry-run", f"--resume {place}"]
    assert (tmp_path / "calls").read_text().splitlines() == (again if restarts else [" ".join(given)])


def test_ray_up_accepts_its_file():
    jsonschema = pytest.importorskip("jsonschema")  # Ray requires it
    ray = Path(find_spec("ray").submodule_search_locations[0])  # finding a file does not need to import Ray
    schema = json.loads((ray / "autoscaler" / "ray-schema.json").read_text())
    text = (CLUSTER / "ray-cluster.yaml").read_text()
    config = yaml.safe_load(text)
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    # The comment at the end of the file describes the user's own machines.
    comment = text[text.index("# provider:") :]
    config_here = yaml.safe_load(re.sub("^# ?", "", comment, flags=re.MULTILINE))
    cloud = ("provider", "head_node_type", "available_node_types", "max_workers")
    config_here |= {key: value for key, value in config.items() if key not in cloud}
    jsonschema.validate(config_here, schema)


def test_ray_up_brings_the_token_and_the_checkout_to_every_node():
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for who in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in config[f"{who}_start_ray_commands"][-1]
    minimum = sum(node.get("min_workers", 0) for node in config["available_node_types"].values())
    assert minimum > 0, "the minimum is 0, but a sweep that no node can hold is refused"


def test_kuberay_knows_every_field(manifests):
    job = manifests["RayJob"]
    assert (job["apiVersion"], job["metadata"]["name"]) == ("ray.io/v1", "raysweep")
    assert job["spec"].keys() <= RAY_JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster.keys() <= RAY_CLUSTER
    assert cluster["headGroupSpec"].keys() <= HEAD_GROUP
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= WORKER_GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(manifests):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert container.keys() <= CONTAINER


def test_pods_have_limits_and_share_the_results(manifests):
    spec = manifests["RayJob"]["spec"]
    claim = manifests["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(manifests):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["results"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["terminationGracePeriodSeconds"] >= 30, "trials need time to save"
        (container,) = pod["containers"]
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == volumes.keys()
        assert f"--output {mounts['results']} " in spec["entrypoint"]
        assert f" {mounts['space']}/space.yaml " in spec["entrypoint"]


def test_kubernetes_guards_ray_with_a_token(manifests):
    cluster = manifests["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0), (
        "2.52.0 is the first version that KubeRay gives a token"
    )
    docker = (CLUSTER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{cluster['rayVersion']}-py" in docker
    assert f"ray[default]=={cluster['rayVersion']}" in docker


@pytest.mark.parametrize("begun", [False, True])
def test_the_entrypoint_begins_a_sweep_or_goes_on_with_it(manifests, begun, tmp_path):
    lines = [
        "#!/bin/sh",
        f'echo "$@" >>{tmp_path}/calls',
        f"case $* in *--dry-run) exit {0 if begun else 2};; esac",
        "exit 7",
    ]
    (tmp_path / "raysweep").write_text("\n".join(lines))
    (tmp_path / "raysweep").chmod(0o755)
    entrypoint = manifests["RayJob"]["spec"]["entrypoint"]
    # KubeRay writes the entrypoint into the submitter's command in this way and adds no quotes.
    subprocess.run(["bash", "-n", "-c", f"if ! true ; then ray job submit -- {entrypoint} ; fi ; true"], check=True)
    process = subprocess.run(["sh", "-c", entrypoint], env={"PATH": f"{tmp_path}:/bin:/usr/bin"}, check=False)
    assert process.returncode == 7, "the entrypoint returns the sweep's own status"
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    new = "sweep /space/space.yaml --output /results --name alpha"
    assert last == ("sweep --resume /results/alpha" if begun else new)


def test_every_launcher_runs_the_same_file():
    """Every command in the files and in docs/cluster.md is one that run_sweep.py accepts."""
    text = "\n".join(path.read_text() for path in [*CLUSTER.iterdir(), ROOT / "docs" / "cluster.md"])
    commands = re.findall(r"(?:run_sweep\.py|slurm\.sbatch) ((?:search_spaces/|--resume)[^`'\n]*)", text)
    assert len(commands) > 3
    for words in map(shlex.split, commands):
        assert parse(["sweep", *(word for word in words if word != "\\")])
        if words[0].startswith("search_spaces/"):
            assert Path(words[0]).stem in shipped_spaces()
            assert space.read(ROOT / words[0])
