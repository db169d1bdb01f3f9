"""Bad input: the message names file, line, field and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.loading import (
    check_relevant_ids,
    load_bundle,
    load_golden_set,
    load_prompt,
    load_retrieval_config,
    load_settings,
)
from tests.conftest import ROOT
from touchstone.cases import dataset_digest
from touchstone.errors import BadInput

CASE = {"id": "a", "question": "Where?"}
POLICY = "scorers:\n  - {name: ok, kind: expect}\n"
BUNDLE = 'name: b\nmodel: openai/gpt-4o-2024-11-20\nprompt: {user: "{question}"}\n'


def golden(root: Path, *lines: str, policy: str | None = POLICY) -> Path:
    folder = root / "datasets" / "d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.jsonl").write_text("\n".join(lines))
    if policy is not None:
        (folder / "policy.yaml").write_text(policy)
    return folder


def bundle(root: Path, text: str) -> None:
    (root / "bundles").mkdir(exist_ok=True)
    (root / "bundles" / "b.yaml").write_text(text)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"id": "a", "question": "?"}', '{"id": "b", '], r"cases\.jsonl:2: not JSON at column \d+"),
        ([json.dumps(CASE), "", json.dumps(CASE)], r"cases\.jsonl:3: field id: 'a' is already used on line 1"),
        (['{"id": "a"}'], r"cases\.jsonl:1: field question: is missing"),
        (['{"id": "a", "question": "?", "refrence": "x"}'], r"cases\.jsonl:1: field refrence: unknown field"),
        (['{"id": "a", "question": "?", "expect": {"regex": "("}}'], r"field expect\.regex: '\(' is not a regular"),
        (['{"id": "a", "question": "?", "expect": {}}'], r"field expect: `expect` is empty"),
        (["", ""], r"cases\.jsonl: the golden set is empty"),
    ],
)
def test_a_broken_golden_set_names_line_and_field(tmp_path: Path, lines: list[str], complaint: str) -> None:
    golden(tmp_path, *lines)
    with pytest.raises(BadInput, match=complaint):
        load_golden_set(tmp_path, "d")


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (
            "scorers:\n  - {name: a, kind: expect}\n  - {name: b, kind: bleu}\n",
            r"yaml:3: .*unknown .*kind.* 'bleu'",
        ),
        ("scorers:\n  - {name: a, kind: expect}\n  - {name: a, kind: length}\n", r"two scorers yield the metric 'a'"),
        ("scorers: []\n", r"list at least one scorer"),
        (POLICY + "gate: {nope: {margin: 0.1}}\n", r"gate\.nope: no scorer yields this metric"),
        (POLICY + "drift: {alpha: 7}\n", r"policy\.yaml:3: field drift\.alpha"),
        (POLICY + "minimum_case: 3\n", r"policy\.yaml:3: field minimum_case: unknown field"),
        (POLICY + "release: {max_repeat: 3}\n", r"policy\.yaml:3: field release\.max_repeat: unknown field"),
        (
            POLICY + "release:\n  canary: {shares: [0.25, 0.05]}\n",
            r"policy\.yaml:4: field release\.canary\.shares: .*shares of traffic rise",
        ),
        ("scorers: [\n", r"policy\.yaml:2: not YAML"),
        ("- a\n", r"policy\.yaml:1: expected `field: value` lines"),
    ],
)
def test_a_broken_policy_names_line_and_field(tmp_path: Path, policy: str, complaint: str) -> None:
    golden(tmp_path, json.dumps(CASE), policy=policy)
    with pytest.raises(BadInput, match=complaint):
        load_golden_set(tmp_path, "d")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BUNDLE.replace("gpt-4o-2024-11-20", "gpt-4o"), r"'openai/gpt-4o' is a moving alias; pin a dated snapshot"),
        (BUNDLE.replace("gpt-4o-2024-11-20", "chatgpt-4o-latest"), r"moving alias"),
        (BUNDLE.replace("model: openai/gpt-4o-2024-11-20\n", ""), r"give either `model` .* or `target`"),
        ("name: b\nmodel: openai/gpt-4o-2024-11-20\n", r"`prompt` is missing"),
        (BUNDLE + "api_base: http://user:pw@host/v1\n", r"keep secrets out of the address"),
        (BUNDLE + "api_base: ftp://host\n", r"not an http"),
        (BUNDLE + "modle: x\n", r"b\.yaml:4: field modle: unknown field"),
        ("name: b\ntarget: {http: 'http://h/', python: 'a:b'}\n", r"exactly one of `http` and `python`"),
    ],
)
def test_a_broken_bundle_says_what_to_do(tmp_path: Path, text: str, complaint: str) -> None:
    bundle(tmp_path, text)
    with pytest.raises(BadInput, match=complaint):
        load_bundle(tmp_path, "b")


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-4o-2024-11-20",
        "openai/gpt-4-0314",
        "openai/gpt-3.5-turbo-0613",
        "anthropic/claude-3-5-haiku-20241022",
        "gemini/gemini-1.5-pro-002",
        "openai/extractive-2026-01-15",
        "bedrock/anthropic.claude-3-5-sonnet-20241022-v2:0",
        "vertex_ai/claude-sonnet-4@20250514",
    ],
)
def test_dated_snapshots_of_every_vendor_count_as_pinned(tmp_path: Path, model: str) -> None:
    bundle(tmp_path, BUNDLE.replace("openai/gpt-4o-2024-11-20", model))
    assert load_bundle(tmp_path, "b").model == model


def test_an_alias_may_be_used_on_purpose(tmp_path: Path) -> None:
    bundle(tmp_path, BUNDLE.replace("gpt-4o-2024-11-20", "gpt-4") + "allow_unpinned: true\n")
    assert load_bundle(tmp_path, "b").allow_unpinned


def test_an_unknown_placeholder_names_the_file_and_the_known_ones(tmp_path: Path) -> None:
    folder = tmp_path / "prompts" / "p"
    folder.mkdir(parents=True)
    (folder / "1.0.0.yaml").write_text('version: 1.0.0\ntemplate: "{contxt} {question}"\n')
    with pytest.raises(
        BadInput, match=r"1\.0\.0\.yaml: unknown placeholder \{contxt\}; known here: \{context\}, \{question\}"
    ):
        load_prompt(tmp_path, "p@1.0.0", {"question", "context"})
    (folder / "1.1.0.yaml").write_text('version: 1.1.0\ntemplate: "Hello"\n')
    with pytest.raises(BadInput, match=r"1\.1\.0\.yaml: \{question\} is missing"):
        load_prompt(tmp_path, "p@1.1.0", {"question"})
    with pytest.raises(BadInput, match=r"prompt p@9\.9\.9 not found .* known: p@1\.0\.0"):
        load_prompt(tmp_path, "p@9.9.9", {"question"})


def test_a_relevant_id_that_is_not_in_the_corpus_names_the_line(tmp_path: Path) -> None:
    golden(tmp_path, json.dumps(CASE), json.dumps({"id": "b", "question": "?", "relevant_ids": ["gone"]}))
    with pytest.raises(BadInput, match=r"cases\.jsonl:2: field relevant_ids: 'gone' is not a document"):
        check_relevant_ids(load_golden_set(tmp_path, "d"), {"here"}, tmp_path)


def test_a_name_that_is_nothing_lists_what_there_is(tmp_path: Path) -> None:
    golden(tmp_path, json.dumps(CASE))
    with pytest.raises(BadInput, match=r"dataset 'e' not found.* known: d"):
        load_golden_set(tmp_path, "e")


def test_a_set_without_a_policy_gets_the_default_scorers(tmp_path: Path) -> None:
    golden(tmp_path, json.dumps(CASE), policy=None)
    assert "answer_ok" in [metric.name for metric in load_golden_set(tmp_path, "d").policy.metrics]


def test_line_separators_inside_a_question_do_not_break_the_line(tmp_path: Path) -> None:
    golden(tmp_path, json.dumps({"id": "a", "question": "one\u2028two"}, ensure_ascii=False))
    assert load_golden_set(tmp_path, "d").cases[0].question == "one\u2028two"


def test_reordering_lines_does_not_change_the_digest_and_an_edit_does(tmp_path: Path) -> None:
    other = {"id": "b", "question": "When?"}
    golden(tmp_path, json.dumps(CASE), json.dumps(other))
    before = load_golden_set(tmp_path, "d")
    golden(tmp_path, json.dumps(other), json.dumps(CASE))
    assert load_golden_set(tmp_path, "d").digest == before.digest
    golden(tmp_path, json.dumps(other | {"question": "When exactly?"}), json.dumps(CASE))
    assert load_golden_set(tmp_path, "d").digest != before.digest == dataset_digest(before.cases)


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "touchstone.yaml").write_text("concurrency: 7\n")
    assert load_settings().concurrency == 7
    monkeypatch.setenv("TOUCHSTONE_CONCURRENCY", "9")
    assert load_settings().concurrency == 9
    monkeypatch.setenv("TOUCHSTONE_CONCURRENCY", "many")
    with pytest.raises(BadInput, match="concurrency"):
        load_settings()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bundles").glob("*.yaml")))
def test_every_shipped_bundle_loads_with_all_it_names(name: str) -> None:
    found = load_bundle(ROOT, name)
    assert isinstance(found.prompt, str)
    load_prompt(ROOT, found.prompt, {"question", "context"})
    assert found.retrieval is not None
    load_retrieval_config(ROOT, found.retrieval)
    assert found.judge is not None
    load_prompt(ROOT, found.judge.prompt, {"payload"}, {"schema"})


@pytest.mark.parametrize("policy", [None, "policy-judged"])
def test_the_shipped_golden_set_is_as_large_as_its_readme_says(policy: str | None) -> None:
    found = load_golden_set(ROOT, "support", policy)
    assert len(found.cases) >= 120
    assert len({case.segment for case in found.cases}) >= 4
    assert sum(case.segment == "out_of_scope" for case in found.cases) >= 15
    assert sum(case.segment == "adversarial" for case in found.cases) >= 15


def test_a_ledger_in_a_folder_that_is_not_there_is_bad_input_and_begins_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gone: no such folder; make it, or correct the address"):
        load_settings(root=tmp_path, ledger_url=f"sqlite:///{tmp_path / 'gone' / 'ledger.db'}")
    assert not (tmp_path / "gone").exists()
