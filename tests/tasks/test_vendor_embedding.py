"""Vendor embeddings keep the rules of chat calls: all through real LiteLLM and real HTTP, from several threads."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from emulator.server import EmulatorOptions, running
from tasks.embedding import Embedder, EmbeddingSpend, load_embedder, open_embedder, usd_per_million_tokens
from tasks.vendor_embedding import check_same_model
from tasks.vendor_endpoint import price_of
from tasks.vendor_library import litellm_module
from tests.conftest import ROOT, VendorControl
from touchstone.bundle import Endpoint, Price
from touchstone.errors import BadInput, InvalidAnswer, OverBudget, TouchstoneError, VendorTimeout, VendorUnavailable
from touchstone.retrieval_config import BuildGate, EmbeddingEndpoint, RetrievalConfig, Source
from touchstone.settings import Settings

# `litellm_module` silences these when LiteLLM is imported, and pytest resets filters for each test.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

MODEL = "openai/text-embedding-3-small"  # 0.02 USD per million tokens in LiteLLM's list
USD_PER_TOKEN = 0.02e-6
TEXTS = [
    f"Paragraph {number} of the warranty: it covers {number} years and {number + 1} parts." for number in range(300)
]


def config(vendor: VendorControl, model: str = MODEL, cap: float | None = None, **where: Any) -> RetrievalConfig:
    base = vendor.url if model.startswith("gemini/") else vendor.api_base
    return RetrievalConfig(
        name="docs",
        version="1.0.0",
        source=Source(path="docs"),
        embedding_model=model,
        embedding=EmbeddingEndpoint(**{"api_base": base, **where}),
        gate=BuildGate(max_cost_usd=cap),
    )


def opened(vendor: VendorControl, cap: float | None = None, **settings: Any) -> Embedder:
    return open_embedder(config(vendor, cap=cap), Settings(**{"attempts": 1, "deadline_s": 10.0, **settings}))


@contextmanager
def always(status: int, answer: dict[str, Any]) -> Iterator[str]:
    """A vendor that gives every request the same answer; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.dumps(answer).encode()
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def vectors(*rows: list[float]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": "x", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """The first call of a process imports LiteLLM, which takes longer than the deadlines here."""
    with running(EmulatorOptions()) as url:
        load_embedder(MODEL, endpoint=EmbeddingEndpoint(api_base=f"{url}/v1")).embed(["warm"])


def test_rows_are_unit_in_order_and_from_batches_of_at_most_96(vendor: VendorControl) -> None:
    rows = opened(vendor, concurrency=4).embed(TEXTS)
    assert rows.shape == (300, 256)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert vendor.counters()["calls"] == 4
    one_by_one = np.vstack([opened(vendor).embed([text]) for text in TEXTS[::50]])
    assert np.allclose(rows[::50], one_by_one, atol=1e-6)


def test_long_texts_make_small_batches(vendor: VendorControl) -> None:
    embedder = opened(vendor)
    assert len(embedder.embed(["word " * 5000] * 4)) == 4
    assert vendor.counters()["calls"] == 4
    assert vendor.counters()["embedded_texts"] == 4


def test_gemini_embeds_too_and_its_price_is_known(vendor: VendorControl) -> None:
    gemini = config(vendor, "gemini/gemini-embedding-001", cap=1.0)
    embedder = open_embedder(gemini, Settings())
    assert embedder.embed(TEXTS[:3]).shape == (3, 256)
    assert embedder.spent.calls == 1
    assert embedder.spent.cost_usd == pytest.approx(embedder.spent.input_tokens * 0.15e-6)
    assert usd_per_million_tokens(gemini) == pytest.approx(0.15)


def test_calls_tokens_cost_and_served_model_are_counted_for_each_build_alone(vendor: VendorControl) -> None:
    embedder = opened(vendor)
    assert embedder.spent == EmbeddingSpend(0, 0, 0.0)
    embedder.embed(TEXTS)
    tokens = vendor.counters()["embedding_tokens"]
    assert embedder.spent.calls == 4
    assert embedder.spent.input_tokens == tokens
    assert embedder.spent.cost_usd == pytest.approx(tokens * USD_PER_TOKEN)
    assert embedder.spent.served_models == ("text-embedding-3-small",)
    assert opened(vendor).spent.calls == 0


def test_another_served_model_is_recorded(vendor: VendorControl) -> None:
    vendor.fault("wrong_model", model="text-embedding-next")
    embedder = opened(vendor)
    embedder.embed(["x"])
    assert embedder.spent.served_models == ("text-embedding-next",)


def test_an_unknown_price_costs_an_unknown_sum(vendor: VendorControl) -> None:
    embedder = open_embedder(config(vendor, "openai/my-own-embedder"), Settings())
    embedder.embed(["x"])
    assert embedder.spent.cost_usd is None
    assert usd_per_million_tokens(config(vendor, "openai/my-own-embedder")) is None


BROKEN = [
    ("missing_vector", InvalidAnswer, "1 vectors were sent for 2 texts"),
    ("ragged_vectors", InvalidAnswer, "have 255 or 256 numbers"),
    ("nan_vector", InvalidAnswer, "zero or not finite"),
    ("zero_vector", InvalidAnswer, "zero or not finite"),
    ("malformed_json", InvalidAnswer, "not the JSON"),
    ("rate_limit", VendorUnavailable, "429"),
    ("server_error", VendorUnavailable, "InternalServerError"),
    ("disconnect", VendorUnavailable, "onnect"),
    ("timeout", VendorTimeout, "within 1 s"),
    ("drip", VendorTimeout, "within 1 s"),
    ("deprecated", BadInput, "embedding_model openai/text-embedding-3-small: the model is gone"),
]


@pytest.mark.parametrize(("kind", "failure", "reason"), BROKEN, ids=[kind for kind, *_ in BROKEN])
def test_a_fault_ends_as_its_typed_failure(
    vendor: VendorControl, kind: str, failure: type[TouchstoneError], reason: str
) -> None:
    vendor.fault(kind)
    with pytest.raises(failure, match=reason):
        opened(vendor, deadline_s=1.0).embed(TEXTS[:2])


@pytest.mark.parametrize("kind", ["missing_vector", "ragged_vectors", "nan_vector"])
def test_gemini_is_held_to_the_same_contract(vendor: VendorControl, kind: str) -> None:
    vendor.fault(kind)
    embedder = open_embedder(config(vendor, "gemini/gemini-embedding-001"), Settings(attempts=1))
    with pytest.raises(InvalidAnswer):
        embedder.embed(TEXTS[:2])


@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "malformed_json", "nan_vector", "missing_vector"])
def test_a_passing_fault_is_survived_with_one_more_request(vendor: VendorControl, kind: str) -> None:
    extra = {"retry_after_s": 0.05} if kind == "rate_limit" else {}
    vendor.fault(kind, times=1, **extra)
    assert opened(vendor, attempts=2).embed(["x"]).shape == (1, 256)
    assert vendor.counters()["calls"] == 2, "LiteLLM and its client make no attempts of their own"


def test_vectors_in_another_order_go_to_the_texts_that_they_name(vendor: VendorControl) -> None:
    expected = opened(vendor).embed(TEXTS[:5])
    vendor.fault("shuffled_vectors")
    assert np.array_equal(opened(vendor).embed(TEXTS[:5]), expected)
    assert vendor.counters()["faults"] == {"shuffled_vectors": 1}


def test_retry_after_is_honoured(vendor: VendorControl) -> None:
    vendor.fault("rate_limit", times=1, retry_after_s=1.2)
    started = time.monotonic()
    opened(vendor, attempts=2).embed(["x"])
    assert 1.2 <= time.monotonic() - started < 4


def test_an_open_circuit_stops_calls_to_a_vendor_that_is_down(vendor: VendorControl) -> None:
    vendor.fault("server_error")
    embedder = opened(vendor)
    for _ in range(12):
        with pytest.raises(VendorUnavailable):
            embedder.embed(["x"])
    assert vendor.counters()["calls"] == 8


def test_a_changed_dimension_is_invalid() -> None:
    answer = vectors([1.0] * 8)
    with always(200, answer) as base:
        embedder = load_embedder(MODEL, endpoint=EmbeddingEndpoint(api_base=base))
        assert embedder.dimension == 8
        answer |= vectors([1.0] * 9)
        with pytest.raises(InvalidAnswer, match="changed its dimension from 8 to 9"):
            embedder.embed(["x"])


def test_plain_numbers_are_read_as_well_as_base64() -> None:
    with always(200, vectors([3.0, 4.0], [0.0, 2.0])) as base:
        embedder = load_embedder(MODEL, endpoint=EmbeddingEndpoint(api_base=base))
        assert np.allclose(embedder.embed(["x", "y"]), [[0.6, 0.8], [0.0, 1.0]])


# What it may cost.


def test_nothing_is_sent_that_could_pass_the_cap(vendor: VendorControl) -> None:
    with pytest.raises(OverBudget, match="cap") as caught:
        opened(vendor, cap=1e-9).embed(["x"])
    assert caught.value.exit_code == 4
    assert vendor.counters()["calls"] == 0


def test_threads_that_share_an_embedder_share_its_cap(vendor: VendorControl) -> None:
    worst = sum(len(text) + 8 for text in TEXTS[:96]) * USD_PER_TOKEN
    embedder = opened(vendor, cap=4 * worst, concurrency=8)
    stopped: list[BaseException] = []

    def build() -> None:
        try:
            for _ in range(6):
                embedder.embed(TEXTS[:96])
        except OverBudget as error:
            stopped.append(error)

    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stopped) == 6
    paid = vendor.counters()["embedding_tokens"] * USD_PER_TOKEN
    assert 3 * worst < paid <= 4 * worst, "calls waited for those in flight, and stopped at the cap"
    assert embedder.spent.cost_usd == pytest.approx(paid)


def test_a_cap_on_an_unknown_price_is_bad_input_before_any_call(vendor: VendorControl) -> None:
    unknown = config(vendor, "openai/my-own-embedder", cap=1.0)
    with pytest.raises(BadInput, match="usd_per_million_tokens"):
        open_embedder(unknown, Settings())
    priced = config(vendor, "openai/my-own-embedder", cap=1.0, usd_per_million_tokens=0.5)
    embedder = open_embedder(priced, Settings())
    embedder.embed(["four"])
    assert embedder.spent.cost_usd == pytest.approx(vendor.counters()["embedding_tokens"] * 0.5e-6)


def test_what_never_arrived_or_was_turned_away_costs_nothing(vendor: VendorControl) -> None:
    vendor.put("faults", [{"kind": "rate_limit", "retry_after_s": 0.01}])
    nowhere = config(vendor, cap=1.0, api_base="http://127.0.0.1:1/v1")
    for embedder in (opened(vendor, cap=1.0), open_embedder(nowhere, Settings(attempts=2))):
        with pytest.raises(VendorUnavailable):
            embedder.embed(["x"])
        assert embedder._vendor.budget.spent_usd == 0.0  # pyright: ignore[reportAttributeAccessIssue] - only a vendor's


# Threads and processes.


def test_requests_of_several_threads_are_in_flight_together_up_to_the_limit() -> None:
    with running(EmulatorOptions(latency_ms=300)) as url:
        embedder = opened(VendorControl(url), concurrency=4)
        started = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(lambda text: embedder.embed([text])[0], TEXTS[:8]))
        took = time.monotonic() - started
    assert 0.6 <= took < 1.8, "8 calls of 0.3 s, 4 at a time: not one after the other, and not all at once"
    assert len(rows) == 8


def test_a_copy_for_another_process_has_the_same_limits_and_the_cap_that_is_left(vendor: VendorControl) -> None:
    embedder = opened(vendor, cap=0.001, attempts=3)
    embedder.embed(TEXTS)
    copy: Any = pickle.loads(pickle.dumps(embedder))
    assert (copy._vendor.attempts, copy.spent.calls) == (3, 0)
    assert copy._vendor.budget.cap_usd == pytest.approx(0.001 - (embedder.spent.cost_usd or 0))
    assert np.array_equal(copy.embed(["x"]), embedder.embed(["x"]))


def test_another_process_embeds_with_it_and_ends_quietly(vendor: VendorControl) -> None:
    script = (
        "import pickle, sys\nembedder = pickle.loads(bytes.fromhex(sys.argv[1]))\nprint(embedder.embed(['x']).shape)\n"
    )
    sent = pickle.dumps(opened(vendor)).hex()
    done = subprocess.run([sys.executable, "-c", script, sent], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("(1, 256)\n", "")


# What the user wrote wrong.


@pytest.mark.parametrize(
    ("model", "where", "reason"),
    [
        ("no-such-vendor", {}, "embedding_model 'no-such-vendor': LiteLLM knows no such vendor; write `minilm`"),
        (MODEL, {"api_base": "https://gateway.example/v1"}, "name the variable that holds its key"),
        (MODEL, {"api_key_env": "TOUCHSTONE_TEST_NO_SUCH_KEY"}, "TOUCHSTONE_TEST_NO_SUCH_KEY is not set"),
        (MODEL, {"api_base": "http://user:pw@127.0.0.1/v1"}, "field embedding.api_base: keep secrets out"),
        ("cohere/embed-english-v3.0", {"api_base": None}, "COHERE_API_KEY is not set.*use `minilm`"),
    ],
)
def test_a_bad_endpoint_is_bad_input_before_any_call(
    vendor: VendorControl, monkeypatch: pytest.MonkeyPatch, model: str, where: dict[str, Any], reason: str
) -> None:
    monkeypatch.delenv("COHERE_API_KEY", raising=False)
    with pytest.raises(BadInput, match=reason) as caught:
        open_embedder(config(vendor, model, **where), Settings())
    assert "pw@" not in str(caught.value)
    assert vendor.counters()["calls"] == 0


def test_a_key_that_the_vendor_echoes_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_EMBEDDING_KEY", "verysecret-0123456789")
    with always(401, {"error": {"message": "bad key verysecret-0123456789"}}) as base:
        where = EmbeddingEndpoint(api_base=base, api_key_env="MY_EMBEDDING_KEY")
        with pytest.raises(BadInput, match="401") as caught:
            load_embedder(MODEL, endpoint=where).embed(["x"])
    assert "verysecret" not in str(caught.value)


@pytest.mark.parametrize("text", ["files/abc", "data:image/png;base64,AAAA", "gs://bucket/cat.png"])
def test_a_text_that_looks_like_a_file_is_embedded_as_text(vendor: VendorControl, text: str) -> None:
    """LiteLLM would fetch it, or send a request of another kind: a document could steer our calls."""
    embedder = open_embedder(config(vendor, "gemini/gemini-embedding-001"), Settings(attempts=1))
    assert embedder.embed([text, "plain"]).shape == (2, 256)


# A model that moved without a new name.


def test_the_same_model_is_recognised_and_a_moved_one_is_refused(vendor: VendorControl) -> None:
    stored = opened(vendor).embed(TEXTS[:5])
    check_same_model(opened(vendor), TEXTS[:5], stored)
    assert vendor.counters()["embedded_distinct"] == 5
    noise = np.random.default_rng(0).normal(scale=0.001, size=stored.shape)
    check_same_model(opened(vendor), TEXTS[:5], (stored + noise).astype(np.float32))

    vendor.put("aliases", {"text-embedding-3-small": "text-embedding-3-small-retrained"})
    embedder = opened(vendor)
    with pytest.raises(BadInput, match=r"embedding_model openai/text-embedding-3-small moved.*cosine"):
        check_same_model(embedder, TEXTS[:5], stored)
    assert embedder.spent.served_models == ("text-embedding-3-small",), "nothing in the answer shows it"
    assert embedder.spent.calls == 1


def test_another_dimension_is_another_model(vendor: VendorControl) -> None:
    with pytest.raises(BadInput, match="256 numbers, the index holds vectors of 128"):
        check_same_model(opened(vendor), TEXTS[:1], opened(vendor).embed(TEXTS[:1])[:, :128])


def test_local_models_and_empty_indexes_are_not_asked(vendor: VendorControl) -> None:
    hashing = load_embedder("hashing")
    check_same_model(hashing, ["a"], hashing.embed(["b"]))
    check_same_model(opened(vendor), [], np.zeros((0, 256), dtype=np.float32))
    assert vendor.counters()["calls"] == 0


def test_a_price_of_ones_own_does_not_change_what_others_pay_for_the_model() -> None:
    model = "openai/text-embedding-3-small"
    listed = price_of(Endpoint(model=model, allow_unpinned=True))
    own = Price(input_per_million=1000, output_per_million=0)
    assert price_of(Endpoint(model=model, allow_unpinned=True, price=own)) == own
    info = litellm_module().get_model_info(model)
    assert listed is not None
    assert info["input_cost_per_token"] * 1e6 == pytest.approx(listed.input_per_million)
