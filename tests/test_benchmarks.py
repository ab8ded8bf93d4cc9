"""The benchmarks' shared parts, and (slow) one small run of each that needs nothing but the package."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def common() -> ModuleType:
    """Load benchmarks/common.py, which is a script's neighbour and no part of a package."""
    spec = importlib.util.spec_from_file_location("secateur_benchmarks_common", FOLDER / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a script with its neighbours, and forget them afterwards: many modules might have such names."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).parent == FOLDER:
            del sys.modules[name]


def run(script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_slope_is_that_of_a_power_law(common: ModuleType) -> None:
    sizes = [1000.0, 2000.0, 5000.0]
    assert math.isclose(common.fit_slope(sizes, [3 * s**1.5 for s in sizes]), 1.5)


def test_tables_are_markdown(common: ModuleType) -> None:
    assert common.table(("model", "s"), [("a", 1), ("bb", 20)]) == [
        "| model |   s |",
        "| ----- | --: |",
        "| a     |   1 |",
        "| bb    |  20 |",
    ]


def test_records_name_no_place_of_this_machine(common: ModuleType) -> None:
    text = common.portable(f"File '{ROOT}/compiler/x.py' and {sys.prefix}/lib/y.py and /some/where/z.py, 1/2 and a/b")
    assert text == "File './compiler/x.py' and ENV/lib/y.py and z.py, 1/2 and a/b"
    assert str(ROOT) not in json.dumps(common.header(1))


def timing(model: str, engine: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "engine": engine, "threads": 1, "speedup": {}, "paired": {}, "others_share": 0.0, **more}


def test_ratios_are_taken_within_rounds(script: Callable[[str], ModuleType]) -> None:
    # The second round is ten times as slow, for everybody: ratios do not see that.
    times = np.array([[4.0, 2.0, 1.0], [40.0, 20.0, 10.0], [4.0, 2.0, 1.0]])
    found = script("deploy_worker").evaluate(["torch eager", "folded", "int8"], times)
    assert found["speedup"] == {"folded": [2.0] * 3, "int8": [4.0] * 3}
    assert found["paired"] == {"int8 : folded": [0.5] * 3}
    assert found["p50_ms"]["int8"] == 1000


def test_a_speedup_that_is_too_small_fails_the_claim(script: Callable[[str], ModuleType]) -> None:
    deploy = script("deploy")
    fast = timing("resnet50", "onnx", speedup={"pruned int8": [12.0, 12.1, 12.2]})
    slow = timing("resnet50", "openvino", speedup={"pruned int8": [10.0, 10.1, 10.2]})
    assert [c.holds for c in deploy.speedup_checks("resnet50", 11.5, [fast, slow])] == [True]
    assert [c.holds for c in deploy.speedup_checks("resnet50", 11.5, [slow])] == [False]
    assert [c.holds for c in deploy.speedup_checks("resnet50", 11.5, [fast | {"others_share": 0.5}])] == [None]
    assert [c.holds for c in deploy.speedup_checks("mobilenet_v2", 8.5, [fast])] == [None]


def test_slower_is_three_rounds_of_four(script: Callable[[str], ModuleType]) -> None:
    deploy = script("deploy")

    def holds(*quartiles: float, engine: str = "onnx") -> bool | None:
        measured = timing("m", engine, paired={"int8 : quantize_static": list(quartiles)})
        return deploy.never_slower("", [measured], ("quantize_static",)).holds

    assert holds(0.97, 1.0, 1.02) is True
    assert holds(1.01, 1.02, 1.03) is False
    assert holds(0.6, 0.9, 1.4) is None
    assert holds(1.01, 1.02, 1.03, engine="torch") is None


def test_operators_in_float_are_found(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    helper: Any = onnx.helper
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("QLinearSigmoid", ["p", "s", "z", "s", "z"], ["g"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["g", "s", "z"], ["r"]),
        helper.make_node("Erf", ["r"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 2, 2]) for name in ("x", "y")]
    constants = [
        helper.make_tensor("s", onnx.TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("z", onnx.TensorProto.UINT8, [], [3]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph), str(tmp_path / "model.onnx"))
    found = script("deploy_worker").float_ops(tmp_path / "model.onnx")
    assert found == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Erf": 1}


def test_differences_of_accuracies_are_paired(script: Callable[[str], ModuleType]) -> None:
    a, b = np.ones(100), np.ones(100)
    b[:4] = 0
    mean, error = script("int8_accuracy_worker").difference(a, b)
    assert math.isclose(mean, 4)
    assert math.isclose(error, 100 * math.sqrt(0.04 * 0.96 / 99))
    assert script("int8_accuracy_worker").difference(a, a) == [0, 0]


def test_a_drop_of_accuracy_fails_the_claim(script: Callable[[str], ModuleType]) -> None:
    accuracy = script("int8_accuracy")

    def verdict(drop: float, *against_peer: float) -> list[bool]:
        rows = [{"method": "secateur", "engine": "onnx", "minus_fp32": [-drop, 0.1]}]
        against = [{"peer": "NNCF", "engine": "openvino", "secateur_minus_peer": list(against_peer)}]
        return [c.holds for c in accuracy.checks([{"model": "m", "rows": rows, "against": against}])]

    assert verdict(0.3, 0.0, 0.1) == [True, True]
    assert verdict(0.31, -0.01, 0.1) == [False, False]


def test_reasons_are_counted_whatever_layer_they_are_about(script: Callable[[str], ModuleType]) -> None:
    shorten = script("exact_passes_worker").shorten
    reason = "stays: it follows 'cat' ({0}), which takes in no scale; it feeds 'ReLU' ({1}), which takes in no scale"
    assert shorten(reason.format("cat_1", "relu_1")) == shorten(reason.format("cat_7", "relu_9"))
    assert shorten(reason.format("cat_1", "relu_1")) == "follows cat; feeds relu"


@pytest.mark.slow
def test_exact_passes_are_proven(tmp_path: Path) -> None:
    run("exact_passes.py", "--only", "shufflenet_v2_x0_5", "--data", str(tmp_path), "--out", str(tmp_path))
    (record,) = json.loads((tmp_path / "exact_passes.json").read_text())["models"]
    assert record["status"] == "ok"
    assert record["batch_norms"] == [56, 0]
    assert max(record["error"], record["dead"]["error"]) <= 1e-9
    assert record["dead"]["passes"]["eliminate-dead-channels"]["removed"] > 0


@pytest.mark.slow
def test_one_model_passes_the_coverage_run(tmp_path: Path) -> None:
    run("coverage.py", "--only", "squeezenet1_1", "--data", str(tmp_path), "--out", str(tmp_path))
    (record,) = json.loads((tmp_path / "coverage.json").read_text())["models"]
    assert record["status"] == "ok"
    assert record["proof"]["error"] <= 1e-9
    assert record["emit"]["loaded"] == []
    text = (tmp_path / "coverage.md").read_text()
    assert "1 of 1 models passed" in text
    assert "CIFAR ResNets were skipped" in text
    assert not (tmp_path / "coverage.jsonl").exists()


@pytest.mark.slow
def test_small_networks_are_measured(tmp_path: Path) -> None:
    run("scaling.py", "--nodes", "300", "--repeats", "1", "--out", str(tmp_path))
    measured = json.loads((tmp_path / "scaling.json").read_text())["networks"]
    assert {kind: 300 <= records[0]["nodes"] < 320 for kind, records in measured.items()} == {
        "stages": True,
        "trunk": True,
    }
