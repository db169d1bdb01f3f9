"""Local embedders: the MiniLM graph against an independent forward pass, and the hashing stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tasks.embedding import EmbeddingSpend, load_embedder, open_embedder, usd_per_million_tokens
from tasks.minilm import MAX_TOKENS, MiniLM, check_weights, load_minilm, model_folder
from touchstone.errors import BadInput
from touchstone.retrieval_config import RetrievalConfig, Source
from touchstone.settings import Settings


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


@pytest.mark.parametrize("name", ["minilm", "hashing"])
def test_a_local_embedder_is_shared_by_builds_and_spends_nothing(name: str) -> None:
    config = RetrievalConfig(name="docs", version="1.0.0", source=Source(path="docs"), embedding_model=name)
    embedder = open_embedder(config, Settings(), max_cost_usd=0.000_001)
    assert embedder is load_embedder(name)
    embedder.embed(["a refund"])
    assert embedder.spent == EmbeddingSpend(calls=0, input_tokens=0, cost_usd=0.0)
    assert usd_per_million_tokens(config) == 0.0


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
