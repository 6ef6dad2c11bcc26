"""The manifests for Kubernetes: valid by the API's own schemas, and in keeping with the program.

No cluster takes part. What the schemas cannot say (that a probe asks for the file which the
configuration names, that a pod is given longer to end than it takes) is compared here.
"""

from __future__ import annotations

import copy
import shlex
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import kubernetes_validate
import pytest
import yaml

from pe_triage.cli import cli
from pe_triage.config import Settings, load_settings
from pe_triage.node.supervisor import RELEASE_WAIT_S
from pe_triage.node.worker import HAND_BACK_AT
from pe_triage.watch.metrics import HELP, PREFIX

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""Oldest that is said to be supported, and the newest that the validator knows."""

NO_RESOURCES = {"kustomization.yaml", "prometheus-adapter-values.yaml"}

Manifest = dict[str, Any]


def manifests() -> Iterator[Manifest]:
    for path in sorted(FOLDER.rglob("*.yaml")):
        if path.name not in NO_RESOURCES:
            yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


ALL = list(manifests())
BY_NAME = {(doc["kind"], doc["metadata"]["name"]): doc for doc in ALL}
NODE = BY_NAME["StatefulSet", "pe-triage-node"]
WORKER = BY_NAME["Deployment", "pe-triage-worker"]
UPGRADE = BY_NAME["Job", "pe-triage-db-upgrade"]
SCALER = BY_NAME["HorizontalPodAutoscaler", "pe-triage-worker"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the validator asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def config() -> dict[str, Any]:
    """The table of the ConfigMap."""
    path = FOLDER / "base" / "config.yaml"
    text = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["pe-triage.toml"]
    return tomllib.loads(text)


def shared_dir() -> str:
    return str(config()["shared_dir"])


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The configuration as the pods get it: the database's URL by a variable."""
    environ = {"PE_TRIAGE_DATABASE": "postgresql://petriage@db.example/petriage"}
    return load_settings(config(), environ=environ)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("doc", ALL, ids=lambda doc: f"{doc['kind']}-{doc['metadata']['name']}")
def test_valid_by_the_schemas(doc: Manifest, version: str) -> None:
    kubernetes_validate.validate(doc, version, strict=True)


def broken(doc: Manifest, *path: str | int, **changes: object) -> Manifest:
    """A copy with keys changed, or removed (None), where `path` leads."""
    found = copy.deepcopy(doc)
    inner: Any = found
    for key in path:
        inner = inner[key]
    for key, value in changes.items():
        if value is None:
            del inner[key]
        else:
            inner[key] = value
    return found


CONTAINER = ("spec", "template", "spec", "containers", 0)
MISTAKES = {
    "a word that nobody knows": broken(NODE, *CONTAINER, readinesProbe={}),
    "text for a number": broken(NODE, "spec", replicas="one"),
    "no selector": broken(WORKER, "spec", selector=None),
    "a probe that asks nothing of anyone": broken(
        NODE, *CONTAINER, "livenessProbe", exec={"commands": ["true"]}
    ),
    "a resource without a unit's text": broken(
        WORKER, *CONTAINER, "resources", "limits", memory=[1]
    ),
    "a metric of a kind that is not stated": broken(SCALER, "spec", "metrics", 0, type=None),
    "a target of the scaler without a name": broken(SCALER, "spec", "scaleTargetRef", name=None),
    "a policy for no port": broken(
        BY_NAME["NetworkPolicy", "pe-triage-node"], "spec", "ingress", 0, ports={"port": 1}
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, version: str) -> None:
    """A check that cannot fail shows nothing."""
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(MISTAKES[mistake], version, strict=True)


def test_an_api_that_is_gone_is_found() -> None:
    with pytest.raises(kubernetes_validate.utils.SchemaNotFoundError):
        kubernetes_validate.validate(
            {**SCALER, "apiVersion": "autoscaling/v2beta2"}, VERSIONS[1], strict=True
        )


def test_every_file_is_listed_and_every_listed_file_is_there() -> None:
    for folder in ("base", "upgrade", "autoscaling"):
        listed = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["resources"]
        there = {p.name for p in (FOLDER / folder).glob("*.yaml")} - NO_RESOURCES
        assert {name for name in listed if name.endswith(".yaml")} == there
        for name in listed:
            assert (FOLDER / folder / name).exists(), name


# ------------------------------------------------------------------ what the program does


def pods() -> list[Manifest]:
    return [doc["spec"]["template"]["spec"] for doc in (NODE, WORKER, UPGRADE)]


def test_every_command_and_option_is_the_programs() -> None:
    commands = []
    for doc in (NODE, WORKER, UPGRADE):
        container = doc["spec"]["template"]["spec"]["containers"][0]
        commands.append(container["args"])
        commands += [
            probe["exec"]["command"][1:]
            for name, probe in container.items()
            if name.endswith("Probe")
        ]
    assert len(commands) == 9
    for command in commands:
        context, words = None, list(command)
        found: Any = cli
        while hasattr(found, "get_command"):
            # Parsed, and not run.
            found, words = found.get_command(context, words[0]), words[1:]
            assert found is not None, command
        with found.make_context(command[0], words):
            pass


def test_probes_ask_for_the_file_that_is_written(settings: Settings) -> None:
    for doc in (NODE, WORKER):
        container = doc["spec"]["template"]["spec"]["containers"][0]
        asked = {
            name: shlex.join(container[name]["exec"]["command"])
            for name in ("startupProbe", "readinessProbe", "livenessProbe")
        }
        assert asked == {
            "startupProbe": f"pe-triage health --ready {settings.health_file}",
            "readinessProbe": f"pe-triage health --ready {settings.health_file}",
            "livenessProbe": f"pe-triage health {settings.health_file}",
        }
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {v["name"]: v for v in doc["spec"]["template"]["spec"]["volumes"]}
        assert settings.health_file is not None
        # Of this pod alone: on the shared storage one pod's file would speak for another.
        assert "emptyDir" in volumes[mounts[str(settings.health_file.parent)]]


def test_a_pod_is_given_longer_to_end_than_it_takes(settings: Settings) -> None:
    """Receivers, workers (none here) and the coordinator end one after another."""
    node, worker = NODE["spec"]["template"]["spec"], WORKER["spec"]["template"]["spec"]
    sleep, seconds = node["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    longest_s = float(seconds) + 3 * settings.drain_s + RELEASE_WAIT_S
    assert node["terminationGracePeriodSeconds"] > longest_s
    assert worker["terminationGracePeriodSeconds"] > settings.drain_s > HAND_BACK_AT
    assert settings.workers == 0


def test_nothing_runs_as_root_or_writes_where_it_should_not() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_ports_and_selectors_meet(settings: Settings) -> None:
    (dicom,) = NODE["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert dicom["containerPort"] == settings.port
    service = BY_NAME["Service", "pe-triage"]["spec"]
    assert service["ports"][0]["targetPort"] == dicom["name"]
    for doc in (NODE, WORKER):
        labels = doc["spec"]["template"]["metadata"]["labels"]
        name = doc["metadata"]["name"]
        assert doc["spec"]["selector"]["matchLabels"] == labels
        for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
            assert BY_NAME[kind, name]["spec"][key]["matchLabels"] == labels
    assert service["selector"] == NODE["spec"]["template"]["metadata"]["labels"]
    policy = BY_NAME["NetworkPolicy", "pe-triage-upgrade"]["spec"]["podSelector"]["matchLabels"]
    assert policy == UPGRADE["spec"]["template"]["metadata"]["labels"]


def test_the_store_is_shared_and_each_node_is_itself() -> None:
    claim = BY_NAME["PersistentVolumeClaim", "pe-triage"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    shared = {"claimName": claim["metadata"]["name"]}
    for doc in (NODE, WORKER):
        container = doc["spec"]["template"]["spec"]["containers"][0]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {v["name"]: v for v in doc["spec"]["template"]["spec"]["volumes"]}
        assert volumes[mounts[str(shared_dir())]]["persistentVolumeClaim"] == shared
    # Two nodes that found one data directory would take each other for themselves.
    (own,) = NODE["spec"]["volumeClaimTemplates"]
    container = NODE["spec"]["template"]["spec"]["containers"][0]
    assert {"name": own["metadata"]["name"], "mountPath": str(config()["data_dir"])} in (
        container["volumeMounts"]
    )
    assert NODE["spec"]["serviceName"] == BY_NAME["Service", "pe-triage-nodes"]["metadata"]["name"]
    assert NODE["spec"]["replicas"] == 2


def test_the_database_is_named_by_a_secret_only() -> None:
    for pod in pods():
        (variable,) = (v for v in pod["containers"][0]["env"] if v["name"] == "PE_TRIAGE_DATABASE")
        assert variable["valueFrom"]["secretKeyRef"] == {
            "name": "pe-triage-database",
            "key": "url",
        }
    assert "postgresql://" not in "".join(p.read_text() for p in FOLDER.rglob("*.yaml"))


def test_the_scaler_asks_for_a_metric_that_is_made(settings: Settings) -> None:
    (metric,) = SCALER["spec"]["metrics"]
    rules = yaml.safe_load((FOLDER / "autoscaling" / "prometheus-adapter-values.yaml").read_text())
    (rule,) = rules["rules"]["external"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    assert "jobs" in HELP
    assert f"{PREFIX}jobs{{" in rule["metricsQuery"]
    assert rule["seriesQuery"].startswith(f"{PREFIX}jobs{{")
    assert SCALER["spec"]["scaleTargetRef"]["name"] == WORKER["metadata"]["name"]
    # The exporter shows the directory that the node writes into.
    exporter = NODE["spec"]["template"]["spec"]["containers"][1]
    (mount,) = exporter["volumeMounts"]
    assert f"--collector.textfile.directory={mount['mountPath']}" in exporter["args"]
    node = NODE["spec"]["template"]["spec"]["containers"][0]
    mounts = {m["name"]: m["mountPath"] for m in node["volumeMounts"]}
    assert settings.watch.metrics_file is not None
    assert str(settings.watch.metrics_file.parent) == mounts[mount["name"]]


def test_the_image_runs_as_the_user_that_the_pods_name() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    users = {(pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"])
             for pod in pods()}  # fmt: skip
    assert [tuple(map(int, line.split()[1].split(":"))) for line in lines
            if line.startswith("USER ")] == list(users)  # fmt: skip
    assert 'ENTRYPOINT ["pe-triage"]' in lines
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in ("pe_triage", "migrations", "sample_dicom", "pyproject.toml"):
        assert f"!{name}" in kept
