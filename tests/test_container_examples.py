"""The container files of examples/ fit each other and the connector. That engines share is tested with namespaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
FOLDER = Path(__file__).parents[1] / "examples/containers"
FLAG = "--kv-transfer-config="


def arguments() -> Iterator[tuple[str, list[str], list[str]]]:
    """Of each container its arguments, and where something is mounted."""
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        mounted = [volume.partition(":")[2] for volume in service["volumes"]]
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(compose["volumes"])
        yield name, service["command"], mounted
    pod: dict[str, Any] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
    assert not {"hostPID", "hostIPC"} & set(pod)
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        yield container["name"], container["args"], [mount["mountPath"] for mount in container["volumeMounts"]]


def test_they_fit_each_other_and_the_connector():
    (address,) = [
        line.partition("KVMARKET_ADDRESS=")[2]
        for line in (FOLDER / "Dockerfile").read_text().splitlines()
        if line.startswith("ENV ")
    ]
    for name, given, mounted in arguments():
        assert str(PurePosixPath(address).parent) in mounted, name
        (flag,) = [json.loads(each.removeprefix(FLAG)) for each in given if each.startswith(FLAG)]
        assert flag == {
            "kv_connector": "KVMarketConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
        }, name
