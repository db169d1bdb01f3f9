"""How many 200-token chunks a second the embedded MiniLM embeds in fp32, beside its limit and a peer.

python benchmarks/embedding.py

The limit is what matrix multiplication alone would allow: the multiplications of one chunk are counted and divided
by the speed of OpenVINO's own fp32 kernel, measured in the same rounds, because a shared machine changes its speed.
The peer is the same network in numpy. All are also given per CPU second, which neighbours disturb less.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.minilm import load_minilm, model_folder

GOAL = 50.0  # chunks a second on two idle cores
TOKENS = 200
CHUNKS = 64
ROUNDS = 5
Floats = NDArray[np.float32]


def main() -> None:
    embedder = load_minilm()
    texts = [_text(number) for number in range(CHUNKS)]
    assert {len(ids) for ids in embedder.token_ids(texts)} == {TOKENS}
    peer = NumpyBert()
    difference = np.abs(peer.embed(embedder.token_ids(texts[:8])) - embedder.embed(texts[:8])).max()
    multiply = _matmul()
    rounds = [(_rate(lambda: _ours(texts)), _rate(multiply), _rate(lambda: _peer(peer, texts))) for _ in range(ROUNDS)]
    ours, limit, numpy_rate = zip(*rounds, strict=True)
    print(f"MiniLM fp32, {CHUNKS} chunks of {TOKENS} tokens, {os.cpu_count()} cores, median of {ROUNDS} rounds")
    print("                             chunks/s   per CPU second")
    _print("OpenVINO (tasks/minilm.py)", ours)
    _print("limit: multiplication alone", limit)
    _print("peer: numpy", numpy_rate)
    share = median(rate[1] for rate in ours) / median(rate[1] for rate in limit)
    print(f"share of the limit {share:.2f}; goal on two idle cores {GOAL:.0f}/s; largest difference {difference:.1e}")


def _print(name: str, rates: tuple[tuple[float, float], ...]) -> None:
    print(f"{name:<28}{median(rate[0] for rate in rates):9.1f}{median(rate[1] for rate in rates):17.1f}")


def _rate(work: Callable[[], float]) -> tuple[float, float]:
    """Chunks per wall second and per CPU second; the work says how many chunks it was."""
    wall, cpu = time.perf_counter(), time.process_time()
    chunks = work()
    return chunks / (time.perf_counter() - wall), chunks / (time.process_time() - cpu)


def _matmul() -> Callable[[], float]:
    """Multiplies eight chunks by a layer's widest matrix, and returns how many chunks that work amounts to."""
    ov: Any = importlib.import_module("openvino")  # after load_minilm(), which keeps its telemetry out
    rows, width, inner, times = 8 * TOKENS, 384, 1536, 60
    left = ov.opset13.parameter([rows, width], np.float32)
    right = np.ones((inner, width), dtype=np.float32)
    model = ov.Model([ov.opset13.matmul(left, right, False, True)], [left], "matmul")
    hint = {ov.properties.hint.inference_precision: ov.Type.f32}
    request = ov.Core().compile_model(model, "CPU", hint).create_infer_request()
    data = np.ones((rows, width), dtype=np.float32)
    # One chunk: 12 squares of 384 per token and layer, and attention's two products.
    chunk_flops = 6 * (2 * TOKENS * 12 * width * width + 4 * TOKENS * TOKENS * width)

    def multiply() -> float:
        for _ in range(times):
            request.infer([data], share_inputs=True, share_outputs=True)
        return times * 2 * rows * width * inner / chunk_flops

    return multiply


def _text(number: int) -> str:
    words = ["water", "house", "server", "battery", "window", "garden", "music", "paper", "winter", "signal"]
    return " ".join(words[(number + 7 * place + place * place) % 10] for place in range(TOKENS - 2))


def _ours(texts: list[str]) -> float:
    return float(len(load_minilm().embed(texts)))


def _peer(peer: NumpyBert, texts: list[str]) -> float:
    token_ids = load_minilm().token_ids(texts[: CHUNKS // 4])
    for start in range(0, len(token_ids), 8):
        peer.embed(token_ids[start : start + 8])
    return float(len(token_ids))


class NumpyBert:
    """The network in numpy for texts of one length."""

    def __init__(self) -> None:
        from safetensors.numpy import load_file

        self._weights = load_file(model_folder() / "model.safetensors")

    def embed(self, token_ids: list[list[int]]) -> Floats:
        weights = self._weights
        hidden = weights["embeddings.word_embeddings.weight"][np.array(token_ids)]
        hidden = hidden + weights["embeddings.position_embeddings.weight"][: len(token_ids[0])]
        hidden = self._norm(hidden + weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
        for layer in range(6):
            hidden = self._layer(hidden, f"encoder.layer.{layer}")
        mean = hidden.mean(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def _layer(self, hidden: Floats, name: str) -> Floats:
        from scipy.special import erf

        attended = self._dense(self._attention(hidden, name), f"{name}.attention.output.dense")
        hidden = self._norm(hidden + attended, f"{name}.attention.output")
        inner = self._dense(hidden, f"{name}.intermediate.dense")
        inner = inner * np.float32(0.5) * (1 + erf(inner * np.float32(0.5**0.5)))
        return self._norm(hidden + self._dense(inner, f"{name}.output.dense"), f"{name}.output")

    def _attention(self, hidden: Floats, name: str) -> Floats:
        texts, tokens, width = hidden.shape
        query, key, value = (
            self._dense(hidden, f"{name}.attention.self.{part}").reshape(texts, tokens, 12, 32).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(2, 3) / np.float32(32**0.5)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads = (shares / shares.sum(axis=-1, keepdims=True)) @ value
        return heads.swapaxes(1, 2).reshape(texts, tokens, width)

    def _dense(self, hidden: Floats, name: str) -> Floats:
        return hidden @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, hidden: Floats, name: str) -> Floats:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return centred / scale * self._weights[f"{name}.LayerNorm.weight"] + self._weights[f"{name}.LayerNorm.bias"]


if __name__ == "__main__":
    main()
