"""Clients of the Open Inference Protocol, version 2, get their answers: tritonclient, KServe's, and any other."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import random
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import tritonclient.http as triton
from flask.testing import FlaskClient
from tritonclient.utils import InferenceServerException

from conftest import Server, make_manifest
from model_server.engines import Tensors
from model_server.manifest import InputSpec, OutputSpec, write_manifest
from model_server.routes.inference import DATATYPES

VALUES: dict[str, list[Any]] = {
    "bool": [True, False],
    "float16": [0.5, -65504],
    "float32": [0.1, 1e30],
    "float64": [0.1, -1e300],
    "int8": [-128, 127],
    "int16": [-(2**15), 1],
    "int32": [-(2**31), 1],
    "int64": [-(2**63), 2**63 - 1],
    "uint8": [0, 255],
    "uint16": [0, 2**16 - 1],
    "uint32": [0, 2**32 - 1],
    "uint64": [2**63, 2**64 - 1],
    "string": ["aé", ""],
}

FLOATS = InputSpec("x", "float32", (-1, 2), "x", "tensor")
INTEGERS = InputSpec("n", "int64", (-1,), "n", "tensor")
ONE = make_manifest([FLOATS], [OutputSpec("y", "float32", (-1, 2), "y", "numbers")], name="one")
TWO = make_manifest(
    [FLOATS, INTEGERS],
    [OutputSpec("y", "float32", (-1, 2), "y", "numbers"), OutputSpec("m", "int64", (-1,), "m", "numbers")],
    name="two",
)
TEXT = make_manifest(
    [InputSpec("t", "string", (-1, 1), "t", "tensor")],
    [OutputSpec("t", "string", (-1, 1), "t", "numbers")],
    name="text",
)
FLAG = make_manifest(
    [InputSpec("b", "bool", (-1,), "b", "tensor")], [OutputSpec("b", "bool", (-1,), "b", "numbers")], name="flag"
)


def answer(tensors: Tensors) -> Tensors:
    """Answer each input, doubled or as it is, under the names of the outputs."""
    return {
        name: value
        for name, value in {
            "y": tensors["x"] * np.float32(2) if "x" in tensors else None,
            "m": tensors.get("n"),
            "t": tensors.get("t"),
            "b": tensors.get("b"),
        }.items()
        if value is not None
    }


@pytest.fixture
def made(serve: Callable[..., FlaskClient]) -> FlaskClient:
    """A client of the application with made-up models."""
    return serve(*[(manifest, answer) for manifest in (ONE, TWO, TEXT, FLAG)], max_body_bytes=2**20)


@pytest.fixture(scope="session")
def real(compiled: Path, start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A gunicorn with the models that ship, and echo, which returns an input of each datatype."""
    import onnx

    models = tmp_path_factory.mktemp("models")
    shutil.copytree(compiled, models, dirs_exist_ok=True)
    tensors = [(dtype, getattr(onnx.TensorProto, onnx_type(dtype))) for dtype in VALUES]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [dtype], [f"{dtype}_out"]) for dtype in VALUES],
        "echo",
        [onnx.helper.make_tensor_value_info(dtype, kind, ["batch", 1]) for dtype, kind in tensors],
        [onnx.helper.make_tensor_value_info(f"{dtype}_out", kind, ["batch", 1]) for dtype, kind in tensors],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 17)])
    (models / "echo").mkdir()
    onnx.save(model, models / "echo" / "model")
    manifest = make_manifest(
        [InputSpec(dtype, dtype, (-1, 1), dtype, "tensor") for dtype in VALUES],
        [OutputSpec(f"{dtype}_out", dtype, (-1, 1), f"{dtype}_out", "numbers") for dtype in VALUES],
        name="echo",
        engine="onnx",
    )
    write_manifest(manifest, models / "echo")
    return start_server(MODEL_SERVER_MODELS=str(models))


def onnx_type(dtype: str) -> str:
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())


def arrays() -> dict[str, np.ndarray]:
    return {
        dtype: np.array([[value] for value in values], object if dtype == "string" else dtype)
        for dtype, values in VALUES.items()
    }


def texts(array: np.ndarray) -> list[Any]:
    return [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]


# ---------------------------------------------------------------- tritonclient


@pytest.fixture
def client(real: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{real.port}") as one:
        yield one


def triton_input(name: str, array: np.ndarray, binary: bool = True) -> triton.InferInput:
    dtype = "string" if array.dtype == object else array.dtype.name
    one = triton.InferInput(name, list(array.shape), DATATYPES[dtype])
    return one.set_data_from_numpy(array, binary_data=binary)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_and_gets_every_datatype(client: triton.InferenceServerClient, binary: bool) -> None:
    inputs = [triton_input(dtype, array, binary) for dtype, array in arrays().items()]
    wanted = None if binary else [triton.InferRequestedOutput(f"{dtype}_out", binary_data=False) for dtype in VALUES]
    result = client.infer("echo", inputs, request_id="abc", outputs=wanted)
    for dtype, array in arrays().items():
        found = result.as_numpy(f"{dtype}_out")
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert texts(found) == texts(array)
    whole = result.get_response()
    assert (whole["id"], whole["model_name"], whole["model_version"]) == ("abc", "echo", "1")


def test_tritonclient_chooses_outputs_and_how_each_is_sent(client: triton.InferenceServerClient) -> None:
    inputs = [
        triton_input(one["name"], np.zeros([3, *one["shape"][1:]], np.float32))
        for one in client.get_model_metadata("wine")["inputs"]
    ]
    both = client.infer("wine", inputs)
    assert both.as_numpy("alcohol").shape == (3, 1)
    assert both.as_numpy("cultivar").shape == (3, 3)
    mixed = client.infer(
        "wine",
        inputs,
        model_version="1",
        outputs=[
            triton.InferRequestedOutput("cultivar", binary_data=False),
            triton.InferRequestedOutput("alcohol", binary_data=True),
        ],
    )
    assert [one["name"] for one in mixed.get_response()["outputs"]] == ["cultivar", "alcohol"]
    assert len(mixed.get_output("cultivar")["data"]) == 9
    assert np.array_equal(mixed.as_numpy("alcohol"), both.as_numpy("alcohol"))
    assert mixed.as_numpy("cultivar") == pytest.approx(both.as_numpy("cultivar"))
    assert client.infer("wine", inputs, outputs=[triton.InferRequestedOutput("alcohol")]).as_numpy("cultivar") is None


def test_tritonclient_reads_a_number_that_is_not_finite_as_nan(client: triton.InferenceServerClient) -> None:
    row = triton_input("dense_1_input", np.array([[np.nan, 0]], np.float32), binary=False)
    result = client.infer("xor", [row], outputs=[triton.InferRequestedOutput("activation_2", binary_data=False)])
    assert result.get_output("activation_2")["data"] == [None]
    assert np.isnan(result.as_numpy("activation_2")).all()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses_requests(client: triton.InferenceServerClient, algorithm: str) -> None:
    rows = np.tile(np.array([[0, 1], [1, 1]], np.float32), (20000, 1))
    [name] = [one["name"] for one in client.get_model_metadata("xor")["inputs"]]
    result = client.infer("xor", [triton_input(name, rows)], request_compression_algorithm=algorithm)
    assert result.as_numpy("activation_2").round()[:4].ravel().tolist() == [1, 0, 1, 0]


def test_tritonclient_reads_metadata_and_readiness(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("xor")
    assert client.is_model_ready("xor", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("xor", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
    assert client.get_model_metadata("xor", "1") == {
        "name": "xor",
        "versions": ["1"],
        "platform": "litert_tflite",
        "inputs": [{"name": "dense_1_input", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "activation_2", "datatype": "FP32", "shape": [-1, 1]}],
    }
    index = client.get_model_repository_index()
    assert [model["name"] for model in index] == ["digits", "digits_even", "echo", "wine", "xor"]
    assert index[-1] == {"name": "xor", "version": "1", "state": "READY", "reason": ""}


def test_tritonclient_understands_errors(client: triton.InferenceServerClient) -> None:
    def refused(call: Callable[..., Any], *args: Any, **more: Any) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as caught:
            call(*args, **more)
        return caught.value.status(), caught.value.message()

    two = triton_input("dense_1_input", np.zeros((1, 2), np.float32))
    three = triton_input("dense_1_input", np.zeros((1, 3), np.float32))
    assert refused(client.infer, "xro", [two]) == (
        "404",
        "there is no model xro (perhaps you mean xor); the models are digits, digits_even, echo, wine, xor",
    )
    assert refused(client.infer, "xor", [two], model_version="2") == (
        "404",
        "the model xor has no version 2; its versions are 1",
    )
    assert refused(client.get_model_metadata, "nope")[0] == "404"
    assert refused(client.infer, "xor", [three]) == (
        "400",
        "input dense_1_input: the shape is [1, 3], the model takes [batch, 2]",
    )
    status, message = refused(client.infer, "xor", [two], sequence_id=7)
    assert (status, message.split(":")[0]) == ("400", "sequence_id")
    shared = triton.InferInput("dense_1_input", [1, 2], "FP32").set_shared_memory("region", 8)
    status, message = refused(client.infer, "xor", [shared])
    assert (status, "shares no memory" in message) == ("400", True)
    status, message = refused(
        client.infer, "xor", [two], outputs=[triton.InferRequestedOutput("activation_2", class_count=1)]
    )
    assert (status, "classification is not supported" in message) == ("400", True)
    assert refused(client.load_model, "xor")[0] == "400"


# ---------------------------------------------------------------- KServe


@pytest.fixture
def kserve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """KServe's REST client as it is, without what its package imports but this client never calls."""
    for name in (
        *("grpc", "pandas", "psutil", "cloudevents", "cloudevents.conversion", "cloudevents.http", "fastapi"),
        *("fastapi.responses", "kserve.protocol.grpc.grpc_predict_v2_pb2_grpc"),
    ):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    spec = importlib.util.find_spec("kserve")
    assert spec is not None
    package = ModuleType("kserve")  # its own __init__ imports servers and Kubernetes
    package.__path__ = list(spec.submodule_search_locations or ())
    monkeypatch.setitem(sys.modules, "kserve", package)
    from kserve import inference_client
    from kserve.protocol import infer_type

    yield inference_client, infer_type
    for name in [name for name in sys.modules if name.startswith("kserve.")]:
        del sys.modules[name]


@pytest.mark.parametrize("binary", [True, False])
def test_kserves_client_sends_and_gets_every_datatype(real: Server, kserve: Any, binary: bool) -> None:
    inference_client, infer_type = kserve
    inputs = []
    for dtype, array in arrays().items():
        one = infer_type.InferInput(dtype, list(array.shape), DATATYPES[dtype])
        # it sends FP16 as binary only
        one.set_data_from_numpy(array, binary_data=binary or dtype == "float16")
        inputs.append(one)
    request = infer_type.InferRequest(
        "echo", inputs, request_id="abc", parameters={"binary_data_output": True} if binary else None
    )

    async def ask() -> Any:
        config = inference_client.RESTConfig(protocol="v2")
        rest = inference_client.InferenceRESTClient(config)
        try:
            return await rest.infer(real.address, request, model_name="echo")
        finally:
            await rest.close()

    response = asyncio.run(ask())
    assert response.id == "abc"
    for dtype, array in arrays().items():
        found = response.get_output_by_name(f"{dtype}_out").as_numpy()
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert texts(found) == texts(array)


def test_kserves_client_reads_readiness_and_errors(real: Server, kserve: Any) -> None:
    inference_client, _ = kserve

    async def ask() -> None:
        rest = inference_client.InferenceRESTClient(inference_client.RESTConfig(protocol="v2"))
        assert await rest.is_server_live(real.address) is True
        assert await rest.is_server_ready(real.address) is True
        assert await rest.is_model_ready(real.address, "xor") is True
        assert await rest.is_model_ready(real.address, "nope") is False
        body = {"inputs": [{"name": "dense_1_input", "shape": [1, 2], "datatype": "FP32", "data": [[1, "0"]]}]}
        with pytest.raises(Exception, match=r"takes numbers only.*400 BAD REQUEST"):
            await rest.infer(real.address, body, model_name="xor")
        await rest.close()

    asyncio.run(ask())


# ---------------------------------------------------------------- JSON


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]} | changes


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[1, 2, 3, 4]], [[[1], [2]], [[3], [4]]]])
def test_data_is_flat_or_nested(made: FlaskClient, data: Any) -> None:
    response = made.post("/v2/models/one/versions/1/infer", json={"id": "7", "inputs": [tensor(data=data)], "more": 1})
    assert response.json == {
        "id": "7",
        "model_name": "one",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2.0, 4.0, 6.0, 8.0]}],
    }


def test_numbers_that_are_not_finite_are_null_in_json_and_exact_in_binary(made: FlaskClient) -> None:
    body = json.dumps({"inputs": [tensor(data=[float("nan"), float("inf"), float("-inf"), 0.1])]})
    response = made.post("/v2/models/one/infer", data=body)
    assert response.text.endswith('"data":[null,null,null,0.2]}]}')
    body = body[:-1] + ', "parameters": {"binary_data_output": true}}'
    response = made.post("/v2/models/one/infer", data=body)
    assert response.data.endswith(np.array([np.nan, np.inf, -np.inf, 0.2], np.float32).tobytes())


def test_only_the_outputs_asked_for_are_sent(made: FlaskClient) -> None:
    inputs = [tensor(), {"name": "n", "shape": [2], "datatype": "INT64", "data": [5, 6]}]
    response = made.post("/v2/models/two/infer", json={"inputs": inputs, "outputs": [{"name": "m"}]})
    assert response.json["outputs"] == [{"name": "m", "datatype": "INT64", "shape": [2], "data": [5, 6]}]
    assert [one["name"] for one in made.post("/v2/models/two/infer", json={"inputs": inputs}).json["outputs"]] == [
        "y",
        "m",
    ]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "inputs must be a list"),
        ([], "inputs must be a list"),
        ([1], "inputs must be a list"),
        ([tensor(name="z")], "unknown name z; the model has x (FP32 [batch, 2])"),
        ([tensor(name=None)], "unknown name None"),
        ([tensor(), tensor()], "x appears twice"),
        ([tensor(datatype="FP64")], "input x: datatype FP64; the model takes x (FP32 [batch, 2])"),
        ([tensor(datatype="FP8")], "input x: unknown datatype FP8"),
        ([tensor(datatype=[])], "unknown datatype []"),
        ([tensor(shape=[1, 4])], "input x: the shape is [1, 4], the model takes [batch, 2]"),
        ([tensor(shape=[4])], "the shape is [4], the model takes [batch, 2]"),
        ([tensor(shape=[-1, 2])], "input x: shape must be a list of sizes"),
        ([tensor(shape=[2.0, 2])], "shape must be a list of sizes"),
        ([tensor(shape=[True, 2])], "shape must be a list of sizes"),
        ([tensor(shape="22")], "shape must be a list of sizes"),
        ([tensor(shape=[0, 2], data=[])], "the shape is [0, 2]"),
        ([tensor(shape=[2**62, 2])], "input x: data must be a list of 9223372036854775808 values"),
        ([tensor(shape=[3, 2])], "data must be a list of 6 values, flat or nested, for the shape [3, 2]; it has 4"),
        ([tensor(data=3)], "it is not a list"),
        ([tensor(data=[[1, 2], [3]])], "ragged"),
        ([tensor(data=[1, 2, 3, None])], "input x: takes numbers only"),
        ([tensor(data=[1, 2, 3, "4"])], "input x: takes numbers only"),
        ([tensor(data=[1, 2, 3, 1e39])], "a number does not fit float32"),
        ([tensor(data=None)], "send either data (JSON) or the parameter binary_data_size"),
        ([tensor(parameters={"binary_data_size": 16})], "either data (JSON) or the parameter binary_data_size"),
        ([tensor(parameters=[])], "input x: parameters must be an object"),
        ([tensor(parameters={"shared_memory_region": "r"})], "input x: this server shares no memory"),
    ],
)
def test_wrong_inputs_are_refused(made: FlaskClient, inputs: Any, words: str) -> None:
    response = made.post("/v2/models/one/infer", json={"inputs": inputs})
    assert response.status_code == 400
    assert words in response.json["error"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": 7}, "id must be a text"),
        ({"outputs": {}}, "outputs must be a list"),
        ({"inputs": [[1] * 1000]}, "inputs must be a list of objects"),
        ({"inputs": 1, "outputs": [[1] * 1000]}, "outputs must be a list of objects"),
        ({"outputs": [{"name": "z"}]}, "outputs: unknown name z; the model has y (FP32 [batch, 2])"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "y appears twice"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "output y: binary_data must be true or false"),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output must be true or false"),
        ({"parameters": 1}, "parameters must be an object"),
        ({"parameters": {"sequence_id": "a"}}, "sequence_id: the models of this server keep no state"),
    ],
)
def test_wrong_requests_are_refused(made: FlaskClient, changes: Any, words: str) -> None:
    response = made.post("/v2/models/one/infer", json={"inputs": [tensor()]} | changes)
    assert response.status_code == 400
    assert words in response.json["error"]


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("one", r'{"id": "\ud800", "inputs": [NaN]}', "the body is not JSON"),
        ("one", r'{"inputs": [{"name": "\ud800", "data": NaN}]}', "the body is not JSON"),
        ("one", r'{"id": "\ud83d\ude00", "inputs": [NaN]}', "inputs must be a list"),
        (
            "text",
            '{"inputs": [{"name": "t", "shape": [2, 1], "datatype": "BYTES", "data": ["a", '
            + f"{'[' * 1000}1{']' * 1000}]}}]}}",
            "ragged",
        ),
    ],
)
def test_hostile_json_is_refused(made: FlaskClient, name: str, body: str, words: str) -> None:
    response = made.post(f"/v2/models/{name}/infer", data=body)
    assert response.status_code == 400
    assert words in response.json["error"]


def test_missing_inputs_are_named(made: FlaskClient) -> None:
    response = made.post("/v2/models/two/infer", json={"inputs": [tensor()]})
    assert response.json["error"] == "an input is missing: the model takes n (INT64 [batch])"


def test_text_that_json_cannot_hold_is_binary_only(made: FlaskClient) -> None:
    data = struct.pack("<I", 1) + b"\xff"
    head = {"inputs": [{"name": "t", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}]}
    response = post(made, "text", head, data)
    assert (response.status_code, "output t is not UTF-8 text" in response.json["error"]) == (400, True)
    response = post(made, "text", head | {"parameters": {"binary_data_output": True}}, data)
    assert response.data.endswith(data)


# ---------------------------------------------------------------- binary tensors


def post(client: FlaskClient, name: str, head: Any, data: bytes, length: int | str | None = None) -> Any:
    text = json.dumps(head).encode() if head is not None else b""
    headers = {"Inference-Header-Content-Length": str(len(text) if length is None else length)}
    return client.post(f"/v2/models/{name}/infer", data=text + data, headers=headers)


def binary(size: Any = 16, **changes: Any) -> dict[str, Any]:
    item = {key: value for key, value in tensor(**changes).items() if key != "data"}
    return item | {"parameters": {"binary_data_size": size}}


def test_binary_tensors_may_stand_at_any_byte(made: FlaskClient) -> None:
    data = np.array([1, 2, 3, 4], "<f4").tobytes()
    for blanks in range(8):
        response = post(made, "one", {"id": " " * blanks, "inputs": [binary()]}, data)
        assert response.json["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]


def test_binary_and_json_tensors_mix(made: FlaskClient) -> None:
    head = {
        "inputs": [{"name": "n", "shape": [2], "datatype": "INT64", "data": [5, 6]}, binary()],
        "outputs": [{"name": "m", "parameters": {"binary_data": True}}, {"name": "y"}],
    }
    response = post(made, "two", head, np.array([1, 2, 3, 4], "<f4").tobytes())
    length = int(response.headers["Inference-Header-Content-Length"])
    assert response.mimetype == "application/octet-stream"
    assert np.frombuffer(response.data[length:], "<i8").tolist() == [5, 6]
    m, y = json.loads(response.data[:length])["outputs"]
    assert m == {"name": "m", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}}
    assert y["data"] == [2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize(
    ("item", "sent", "words"),
    [
        (binary(), 15, "input x: binary_data_size is 16, but only 15 bytes of the body are left"),
        (binary(), 17, "1 bytes follow the last input"),
        (binary(12), 12, "input x: binary_data_size is 12, but FP32 [2, 2] takes 16"),
        (binary(0), 0, "binary_data_size is 0, but FP32 [2, 2] takes 16"),
        (binary(2**62), 16, f"binary_data_size is {2**62}, but only 16 bytes"),
        (binary(-16), 16, "input x: binary_data_size must be an integer of 0 or more"),
        (binary(16.0), 16, "binary_data_size must be an integer"),
        (binary(True), 16, "binary_data_size must be an integer"),
        (binary(shape=[2**61, 2]), 16, "but FP32 [2305843009213693952, 2] takes 18446744073709551616"),
        (binary(datatype="INT32"), 16, "datatype INT32; the model takes x (FP32 [batch, 2])"),
        (tensor(), 16, "16 bytes follow the last input"),
    ],
)
def test_wrong_binary_tensors_are_refused(made: FlaskClient, item: Any, sent: int, words: str) -> None:
    response = post(made, "one", {"inputs": [item]}, b"\0" * sent)
    assert response.status_code == 400
    assert words in response.json["error"]


@pytest.mark.parametrize("length", ["-1", "1e3", "99999", "9" * 30, "", "0x10"])
def test_wrong_header_lengths_are_refused(made: FlaskClient, length: str) -> None:
    response = post(made, "one", {"inputs": [binary()]}, b"\0" * 16, length)
    assert response.status_code == 400
    assert "Inference-Header-Content-Length" in response.json["error"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\1\0\0\0a", "2 values of BYTES take at least 8 bytes"),
        (b"\1\0\0\0a\2\0\0\0a", "value 1 of 2 ends after its last byte"),
        (b"\6\0\0\0abcd\0", "value 0 of 2 ends after"),
        (b"\5\0\0\0abcde\0\0", "value 1 of 2 ends after"),
        (b"\xff\xff\xff\xffa\0\0\0", "value 0 of 2 ends after"),
        (b"\0\0\0\0\1\0\0\0ab", "input t: 1 bytes follow the last of 2 values"),
    ],
)
def test_wrong_lengths_of_texts_are_refused(made: FlaskClient, data: bytes, words: str) -> None:
    item = {"name": "t", "shape": [2, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    response = post(made, "text", {"inputs": [item]}, data)
    assert response.status_code == 400
    assert words in response.json["error"]


def test_a_bool_is_a_byte_of_0_or_1(made: FlaskClient) -> None:
    head = {"inputs": [{"name": "b", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}]}
    assert post(made, "flag", head, b"\0\1\1").json["outputs"][0]["data"] == [False, True, True]
    assert "neither 0 nor 1" in post(made, "flag", head, b"\0\1\2").json["error"]


def test_a_header_of_0_says_that_the_body_is_the_only_input(made: FlaskClient) -> None:
    response = post(made, "one", None, np.array([1, 2, 3, 4, 5, 6], "<f4").tobytes(), 0)
    assert np.frombuffer(response.data[-24:], "<f4").tolist() == [2, 4, 6, 8, 10, 12]
    length = int(response.headers["Inference-Header-Content-Length"])
    assert json.loads(response.data[:length])["outputs"][0]["shape"] == [3, 2]
    assert post(made, "text", None, b"\xffany bytes", 0).data.endswith(b"\x0a\0\0\0\xffany bytes")
    for name, data, words in (
        ("one", b"\0" * 12, "12 bytes are not a multiple of 8; it takes x (FP32 [batch, 2])"),
        ("two", b"\0" * 8, "the model has several inputs"),
        ("one", b"", "the body is empty"),
    ):
        response = post(made, name, None, data, 0)
        assert (response.status_code, words in response.json["error"]) == (400, True)


# ---------------------------------------------------------------- compressed requests


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests(made: FlaskClient, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    def ask(body: bytes, name: str = encoding) -> tuple[int, Any]:
        response = made.post("/v2/models/one/infer", data=body, headers={"Content-Encoding": name})
        return response.status_code, response.json

    body = json.dumps({"inputs": [tensor()]}).encode()
    assert ask(pack(body))[0] == 200
    assert ask(body)[1]["error"].startswith(f"the body is not {encoding}, as its Content-Encoding says")
    assert ask(pack(body)[:-5])[1]["error"].endswith("ends too early")
    assert ask(pack(body) + b"x")[1]["error"].endswith("has more after its end")
    bomb = ask(pack(b" " * (2**20 + 1)))
    assert (bomb[0], "limit of 1 MB" in bomb[1]["error"]) == (413, True)
    full = ask(pack(body + b" " * (2**20 - len(body))))
    assert full[0] == 200
    refused = ask(body, "br")
    assert (refused[0], refused[1]["error"]) == (415, "Content-Encoding: br; send gzip, deflate, or leave it out")


# ---------------------------------------------------------------- the rest


def test_what_is_not_ready_says_so(serve: Callable[..., FlaskClient]) -> None:
    def broken(tensors: Tensors) -> Tensors:
        raise RuntimeError("torn")

    client = serve((ONE, answer), (make_manifest([INTEGERS], name="made"), broken))
    for path in ("health/ready", "models/made/ready"):
        response = client.get(f"/v2/{path}")
        assert (response.status_code, response.json) == (503, {"error": "not ready: made: RuntimeError: torn"})
    assert client.get("/v2/models/one/ready").json == {"name": "one", "ready": True}
    states = [(model["name"], model["state"]) for model in client.post("/v2/repository/index").json]
    assert states == [("made", "UNAVAILABLE"), ("one", "READY")]
    assert [one["name"] for one in client.post("/v2/repository/index", json={"ready": True}).json] == ["one"]
    assert client.post("/v2/repository/index", json={"ready": 1}).status_code == 400


def test_mutated_binary_requests_are_answered_or_refused(made: FlaskClient) -> None:
    dice = random.Random(12)
    text = json.dumps({"inputs": [{"name": "n", "shape": [2], "datatype": "INT64", "data": [5, 6]}, binary()]})
    whole = text.encode() + b"\0" * 16
    for _ in range(500):
        body = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(body))
            body[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
        length = dice.choice([len(text), len(text) + dice.randint(-5, 5), 0])
        headers = {"Inference-Header-Content-Length": str(length)}
        response = made.post("/v2/models/two/infer", data=bytes(body), headers=headers)
        assert response.status_code in (200, 400)
