"""Graphs made to read files that are not the bundle's: refused before ONNX Runtime sees them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from resealing import reseal

from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.onnx_external import CHILDREN, external_files
from vl3edge.runtime.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle"))


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*tensors: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.GraphProto:
    return helper.make_graph(nodes or [helper.make_node("Identity", ["x"], ["y"])], "g", [], [], list(tensors))


def model_of(part: onnx.GraphProto) -> bytes:
    return bytes(helper.make_model(part).SerializeToString())


def hidden_in_a_subgraph(location: str) -> bytes:
    inner = helper.make_node("If", ["c"], ["y"], then_branch=graph(external(location)), else_branch=graph())
    return model_of(graph(nodes=[inner]))


def hidden_in_a_constant(location: str) -> bytes:
    return model_of(graph(nodes=[helper.make_node("Constant", [], ["y"], value=external(location))]))


def hidden_in_a_function(location: str) -> bytes:
    model = helper.make_model(graph())
    body = [helper.make_node("Constant", [], ["y"], value=external(location))]
    model.functions.append(helper.make_function("d", "F", [], ["y"], body, [helper.make_opsetid("", 21)]))
    return bytes(model.SerializeToString())


def hidden_in_a_second_graph(location: str) -> bytes:
    """Readers of protocol buffers merge a message that stands twice."""
    return model_of(graph()) + model_of(graph(external(location)))


OUTSIDE = [
    "../secret.bin",
    "/etc/passwd",
    "link.bin",
    "sub/../vision.onnx.data",
    "./vision.onnx.data",
    "",
    "unlisted.bin",
]
HIDING = [hidden_in_a_subgraph, hidden_in_a_constant, hidden_in_a_function, hidden_in_a_second_graph]


@pytest.mark.parametrize("location", OUTSIDE)
def test_graphs_read_no_file_that_is_not_the_bundles(bundle: Path, tmp_path: Path, location: str) -> None:
    """ONNX Runtime 1.23 reads the first three; newer ones refuse them too."""
    np.arange(4, dtype=np.float32).tofile(tmp_path / "secret.bin")
    np.arange(4, dtype=np.float32).tofile(bundle / "unlisted.bin")
    (bundle / "link.bin").symlink_to(tmp_path / "secret.bin")
    (bundle / "vision.onnx").write_bytes(model_of(graph(external(location))))
    reseal(bundle)
    with pytest.raises(BundleError, match=r"vision\.onnx reads .*, which is not one of the bundle's files"):
        open_bundle(bundle)


@pytest.mark.parametrize("hide", HIDING)
def test_wherever_in_the_graph_they_stand(bundle: Path, hide: Any) -> None:
    (bundle / "decoder.onnx").write_bytes(hide("../secret.bin"))
    reseal(bundle)
    with pytest.raises(BundleError, match=r"decoder\.onnx reads '\.\./secret\.bin'"):
        open_bundle(bundle)
    (bundle / "decoder.onnx").write_bytes(hide("embeddings.safetensors"))
    reseal(bundle)
    open_bundle(bundle)


def test_the_fields_that_lead_to_tensors_are_those_of_onnx() -> None:
    """Derived from onnx.proto itself: every message from which a tensor can be reached, and the fields that lead on."""
    found: dict[str, Any] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.name not in found:
            found[message.name] = message
            waiting += [field.message_type for field in message.fields if field.message_type]
    reach = {"TensorProto"}
    while (
        more := {
            name
            for name, message in found.items()
            if any(field.message_type and field.message_type.name in reach for field in message.fields)
        }
        - reach
    ):
        reach |= more
    expected = {
        name: {
            field.number: field.message_type.name
            for field in found[name].fields
            if field.message_type and field.message_type.name in reach
        }
        for name in reach
    }
    expected["TensorProto"] = {found["TensorProto"].fields_by_name["external_data"].number: "StringStringEntryProto"}
    assert expected == CHILDREN


def test_locations_are_those_that_onnx_reads(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        wanted = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert external_files(path) == wanted
