"""Embedders: the MiniLM graph against an independent forward pass, and what vendors get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.embedding import Embedder, load_embedder
from tasks.minilm import MAX_TOKENS, MiniLM, check_weights, load_minilm, model_folder
from touchstone.errors import BadInput, InvalidAnswer, VendorUnavailable


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return load_minilm()


def test_paraphrases_are_nearer_than_unrelated_sentences(minilm: MiniLM) -> None:
    ask, same, other = minilm.embed(
        ["How do I reset my password?", "I forgot my password and want a new one.", "The parcel arrived in Lisbon."]
    )
    assert ask @ same > 0.6
    assert ask @ other < 0.2


def test_the_graph_equals_a_forward_pass_written_in_numpy(minilm: MiniLM) -> None:
    sentence = "Drifting models are found by paired evidence, not by a fixed threshold."
    (ids,) = minilm.token_ids([sentence])
    assert np.abs(minilm.embed([sentence])[0] - bert_in_numpy(ids)).max() < 1e-4


def test_padding_in_a_batch_changes_nothing(minilm: MiniLM) -> None:
    texts = ["short", "a sentence of middling length, nothing more", "word " * 200]
    together = minilm.embed(texts)
    assert np.abs(together - np.vstack([minilm.embed([text]) for text in texts])).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_rows_come_back_in_the_order_of_the_texts(minilm: MiniLM) -> None:
    texts = [f"{'very ' * (7 * number % 11)}long text number {number}" for number in range(20)]
    assert np.abs(minilm.embed(texts)[::-1] - minilm.embed(texts[::-1])).max() < 1e-5


def test_nothing_beyond_256_tokens_is_read(minilm: MiniLM) -> None:
    (ids,) = minilm.token_ids(["word " * 1000])
    assert len(ids) == MAX_TOKENS
    one, other = minilm.embed(["word " * 254, "word " * 254 + "refund"])
    assert np.array_equal(one, other)
    assert len(minilm.tokenize("word " * 1000)) == 1000  # the chunker sees all of them


def test_no_texts_give_no_rows(minilm: MiniLM) -> None:
    assert minilm.embed([]).shape == (0, 384)


def test_tokens_are_places_in_the_text(minilm: MiniLM) -> None:
    text = "Unbelievably, it works!"
    assert "".join(text[start:stop] for start, stop in minilm.tokenize(text)) == text.replace(" ", "")


def test_threads_share_one_model(minilm: MiniLM) -> None:
    texts = [f"question number {number} about refunds" for number in range(16)]
    expected = minilm.embed(texts)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: minilm.embed([text])[0], texts))
    assert np.abs(np.vstack(rows) - expected).max() < 1e-5


def test_weights_that_are_not_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(BadInput, match=r"model\.safetensors .* expected 53aa51172d14"):
        check_weights(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="missing"):
        check_weights(tmp_path / "nowhere.safetensors")


def test_loading_reports_to_nobody_and_importing_loads_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, tasks.embedding, tasks.minilm, tasks.indexing, tasks.retrieval\n"
        "heavy = {'openvino', 'lancedb', 'sklearn', 'litellm', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "tasks.minilm._openvino()\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert not (tmp_path / "intel").exists()


def test_hashing_gives_unit_rows_even_for_texts_without_words() -> None:
    embedder = load_embedder("hashing")
    rows = embedder.embed(["refund window", "the of ?!", ""])
    assert rows.shape == (3, embedder.dimension)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


def test_an_embedder_is_loaded_once_per_process() -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_embedder, ["hashing"] * 8))
    assert len({id(embedder) for embedder in loaded}) == 1


# A vendor, over real HTTP.

Reply = Callable[[list[str]], tuple[int, Any]]


@pytest.fixture
def vendor() -> Iterator[Callable[[Reply], Embedder]]:
    """Starts an OpenAI-shaped embeddings endpoint that answers as the test says."""
    servers = []

    def start(reply: Reply) -> Embedder:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = reply(body["input"])
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}/v1"
        return load_embedder("openai/text-embedding-3-small", api_base=address, api_key="sk-test-secret-0123456789")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def vectors(*rows: list[float]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": "x", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def test_a_vendor_is_asked_in_batches_and_its_rows_are_made_unit(vendor: Callable[[Reply], Embedder]) -> None:
    asked: list[int] = []

    def reply(texts: list[str]) -> tuple[int, Any]:
        asked.append(len(texts))
        return 200, vectors(*([3.0, 4.0 + len(text)] for text in texts))

    embedder = vendor(reply)
    assert embedder.dimension == 2
    rows = embedder.embed(["x" * (number % 5) for number in range(200)])
    assert asked == [1, 96, 96, 8]
    assert np.allclose(rows[0], [0.6, 0.8])
    assert np.allclose(rows[5], rows[0])


def test_a_vendor_that_stumbles_is_asked_again(vendor: Callable[[Reply], Embedder]) -> None:
    replies = iter([(429, {"error": {"message": "slow down"}}), (200, vectors([1.0, 0.0]))])
    assert vendor(lambda texts: next(replies)).embed(["x"]).tolist() == [[1.0, 0.0]]


def test_a_vendor_that_stays_down_is_unavailable_and_the_key_is_not_told(
    vendor: Callable[[Reply], Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    embedder = vendor(lambda texts: (500, {"error": {"message": "bad key sk-test-secret-0123456789"}}))
    with pytest.raises(VendorUnavailable, match="after 4 attempts") as caught:
        embedder.embed(["x"])
    assert "secret" not in str(caught.value)


def test_an_unknown_model_is_bad_input(vendor: Callable[[Reply], Embedder]) -> None:
    with pytest.raises(BadInput, match="embedding_model"):
        vendor(lambda texts: (404, {"error": {"message": "no such model"}})).embed(["x"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (vectors([1.0, 0.0]), "sent 1 vectors for 2 texts"),
        (vectors([1.0, 0.0], [1.0]), "cannot be read"),
        (vectors([1.0, 0.0], [1.0, float("nan")]), "not finite"),
    ],
)
def test_vectors_that_break_the_contract_are_invalid(
    vendor: Callable[[Reply], Embedder], answer: Any, message: str
) -> None:
    with pytest.raises(InvalidAnswer, match=message):
        vendor(lambda texts: (200, answer)).embed(["x", "y"])


def bert_in_numpy(token_ids: list[int]) -> np.ndarray:
    """One sentence through BERT as its paper draws it: no batching, no mask, float64."""
    from safetensors.numpy import load_file
    from scipy.special import erf, softmax

    weights = load_file(model_folder() / "model.safetensors")

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T.astype(float) + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / scale * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

    x = (
        weights["embeddings.word_embeddings.weight"][token_ids].astype(float)
        + weights["embeddings.position_embeddings.weight"][: len(token_ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = norm(x, "embeddings")
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            dense(x, f"{name}.attention.self.{part}").reshape(-1, 12, 32).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        shares = softmax(query @ key.swapaxes(1, 2) / np.sqrt(32), axis=-1)
        heads = (shares @ value).swapaxes(0, 1).reshape(-1, 384)
        x = norm(x + dense(heads, f"{name}.attention.output.dense"), f"{name}.attention.output")
        inner = dense(x, f"{name}.intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)
