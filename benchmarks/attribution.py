"""20 seeded faults, four per factor: does `touchstone attribute` name what made quality fall, and for how many calls?

Each fault is one harmful change among harmless ones: the run after it also has another model id, another prompt,
another retrieval config and another index version than the run before, so that every factor has to be excluded. The
real code runs against the emulated vendor over HTTP, on the shipped corpus and golden set, searched by words.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.arena import ROOT, emulated_vendor
from emulator.server import EmulatorOptions, running
from flows.attribution import conduct as attribute
from flows.golden_eval import conduct as evaluate
from tasks.environment import apply_defaults
from tasks.indexing import ensure_index
from tasks.ledger import Ledger
from tasks.live_index import live_pointer, promote
from tasks.loading import load_retrieval_config, load_settings
from tasks.plan import EvalRequest, plan_eval
from tasks.replay_plan import AttributionRequest, plan_replays
from tasks.spool import existing_spool
from touchstone.attribution import decide_attribution
from touchstone.attribution_records import (
    AttributionDecision,
    AttributionReport,
    Evidence,
    FactorState,
    Fallen,
    Replay,
    Standing,
)
from touchstone.factor_swaps import Swap
from touchstone.prompts import Prompt

LIMIT = 19
SYSTEM = """You answer questions of customers of Larkvane, a maker of connected weather stations.
- Answer only from the documents, in at most 2 sentences.
- When the documents do not hold the answer, reply exactly: "I can't find that in our help center."
"""
TEMPLATE = "Documents:\n{context}\n\nQuestion: {question}"
PLAIN = "judge-plain@1.0.0"
GOOD, ALSO_GOOD = "extractive-2026-01-15", "extractive-2026-02-20"
RUBRIC = {"name": "judge", "kind": "rubric", "dimensions": ["faithfulness", "relevance"]}
EXAMPLE = json.dumps(
    {
        "question": "What is the top speed of the unit?",
        "answer": "It is blue.",
        "contexts": ["The station measures rain."],
        "reference": "40 km/h",
        "dimensions": RUBRIC["dimensions"],
    }
)


@dataclass(frozen=True)
class World:
    """All that decides an answer and its score."""

    model: str = GOOD
    system: str = SYSTEM
    template: str = TEMPLATE
    temperature: float = 0.3
    config: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Path, random.Random], None] | None = None  # what happens to the documents
    alias: dict[str, str] = field(default_factory=dict)  # what the vendor serves behind a name
    judge: dict[str, Any] | None = None
    judged: bool = False


@dataclass(frozen=True)
class Fault:
    """One change that harms. `after` is applied to the world with all its harmless changes."""

    name: str
    culprit: str
    after: Callable[[World], World]
    before: World = World()
    decoys: bool = True


def harmless(world: World) -> World:
    """The same product with everything renewed."""
    return replace(
        world,
        model=ALSO_GOOD,
        system=world.system.replace("a maker of", "which makes"),
        config=world.config | {"version": "1.1.0", "top_k": 5},
        spoil=_add_a_page,
    )


def _add_a_page(corpus: Path, chance: random.Random) -> None:
    (corpus / "press.md").write_text("# Press\n\nJournalists write to the press desk in Utrecht.\n")


def _delete_pages(corpus: Path, chance: random.Random) -> None:
    pages = sorted(corpus.rglob("*.md"))
    for page in chance.sample(pages, len(pages) // 3):
        page.unlink()


def _cut_pages(corpus: Path, chance: random.Random) -> None:
    for page in sorted(corpus.rglob("*.md")):
        page.write_text(page.read_text()[:200])


def _old_numbers(corpus: Path, chance: random.Random) -> None:
    for page in sorted(corpus.rglob("*.md")):
        text = page.read_text()
        page.write_text(re.sub(r"(?<![\d-])\d+(?![\d-])", lambda found: _another(found.group(), chance), text))


def _another(number: str, chance: random.Random) -> str:
    return str(int(number) + chance.randint(1, 9))


def _placeholders(corpus: Path, chance: random.Random) -> None:
    for page in sorted([*corpus.glob("billing/*.md"), *corpus.glob("orders/*.md")]):
        page.write_text(f"# {page.stem}\n\nThis page is being translated.\n")


def _judge(prompt: str = "judge@1.0.0", model: str = "judge-2026-01-15") -> dict[str, Any]:
    return {"model": f"openai/{model}", "prompt": prompt}


JUDGED = World(judge=_judge(), judged=True, temperature=0)
FAULTS = (
    Fault("a lite snapshot", "model", lambda w: replace(w, model="extractive-lite-2026-02-20")),
    Fault("a terse snapshot", "model", lambda w: replace(w, model="extractive-terse-2026-02-20")),
    Fault("lite, silently", "model", lambda w: replace(w, model=GOOD, alias={GOOD: "extractive-lite"})),
    Fault(
        "terse, silently, nothing else", "model", lambda w: replace(w, alias={GOOD: "extractive-terse"}), decoys=False
    ),
    Fault("one sentence at most", "prompt", lambda w: replace(w, system=w.system.replace("2 sentences", "1 sentence"))),
    Fault(
        "another refusal",
        "prompt",
        lambda w: replace(w, system=w.system.replace("I can't find that in our help center.", "Please call us.")),
    ),
    Fault(
        "the question first",
        "prompt",
        lambda w: replace(w, template="Question: {question}\n\nDocuments:\n{context}"),
    ),
    Fault(
        "an instruction in the question",
        "prompt",
        lambda w: replace(
            w, template=TEMPLATE.replace("{question}", "Give the price, shipping cost and date: {question}")
        ),
    ),
    Fault("one chunk", "retrieval", lambda w: replace(w, config=w.config | {"top_k": 1})),
    Fault("semantic search", "retrieval", lambda w: replace(w, config=w.config | {"search": "semantic"})),
    Fault("tiny chunks", "retrieval", lambda w: replace(w, config=w.config | {"chunk_size": 16, "chunk_overlap": 0})),
    Fault(
        "small chunks, few of them",
        "retrieval",
        lambda w: replace(w, config=w.config | {"chunk_size": 32, "chunk_overlap": 0, "top_k": 2}),
    ),
    Fault("a third of the pages gone", "index", lambda w: replace(w, spoil=_delete_pages)),
    Fault("pages cut after 200 characters", "index", lambda w: replace(w, spoil=_cut_pages)),
    Fault("pages with wrong numbers", "index", lambda w: replace(w, spoil=_old_numbers)),
    Fault("placeholders for two sections", "index", lambda w: replace(w, spoil=_placeholders)),
    Fault("an example after the input", "judge", lambda w: replace(w, judge=_judge("judge-example@1.0.0")), JUDGED),
    Fault("an empty answer after the input", "judge", lambda w: replace(w, judge=_judge("judge-empty@1.0.0")), JUDGED),
    Fault(
        "a stricter snapshot",
        "judge",
        lambda w: replace(JUDGED, model=ALSO_GOOD, judge=_judge(PLAIN, "strict-2026-02-20")),
        replace(JUDGED, judge=_judge(PLAIN, "fair-2026-01-15")),
    ),
    Fault(
        "a stricter judge, silently",
        "judge",
        lambda w: replace(JUDGED, model=ALSO_GOOD, judge=w.judge, alias={"fair-2026-01-15": "strict-2026-02-20"}),
        replace(JUDGED, judge=_judge(PLAIN, "fair-2026-01-15")),
    ),
)


class Bench:
    """A project in the current directory, made to be as a world says."""

    def __init__(self, root: Path, vendor: str, seed: int, cases: int, until: ExitStack) -> None:
        self.root = root
        self.vendor = vendor
        self.judge_vendor = vendor
        self.seed = seed
        self._open, self._judges = until, ""
        text = (ROOT / "datasets" / "support" / "cases.jsonl").read_text()
        loaded = [json.loads(line) for line in text.splitlines()[:cases]]
        lines = [json.dumps(case | {"relevant_ids": []}) for case in loaded]  # pages will be deleted
        self._golden("plain", lines, [{"name": "answer_ok", "kind": "expect"}])
        answerable = [line for line in lines if json.loads(line)["segment"] not in {"out_of_scope", "adversarial"}]
        self._golden("judged", answerable[:60], [RUBRIC])
        shutil.copytree(ROOT / "prompts", root / "prompts")
        head = "You grade the answers of a support assistant, each dimension from 1 to 5."
        self._judge_prompt("judge-example", head, "input: " + _braces(EXAMPLE))
        empty = json.dumps(json.loads(EXAMPLE) | {"answer": ""})
        self._judge_prompt("judge-empty", head, "input: " + _braces(empty))
        plain = {"version": "1.0.0", "template": "Grade this: {payload}", "parameters": {"temperature": 0}}
        self._write("prompts/judge-plain/1.0.0.yaml", json.dumps(plain))

    def become(self, world: World) -> None:
        """Write the files and tell the vendor; move the live pointer to an index of the documents as they are."""
        corpus = self.root / "corpus"
        shutil.rmtree(corpus, ignore_errors=True)
        shutil.copytree(ROOT / "datasets" / "support" / "corpus", corpus)
        if world.spoil:
            world.spoil(corpus, random.Random(self.seed))
        config = {"name": "bench", "version": "1.0.0", "source": {"path": "corpus"}, "embedding_model": "hashing"}
        config |= {"chunk_size": 256, "chunk_overlap": 32, "top_k": 4, "search": "keyword", "index": "flat"}
        self._write("bench.yaml", json.dumps(config | world.config))
        price = {"input_per_million": 0.15, "output_per_million": 0.60}
        bundle: dict[str, Any] = {
            "name": "bench",
            "model": f"openai/{world.model}",
            "api_base": f"{self.vendor}/v1",
            "price": price,
            "retrieval": "bench.yaml",
            "prompt": {"user": world.template, "system": world.system},
            "parameters": {"temperature": world.temperature, "max_tokens": 200},
        }
        if world.judge:
            bundle["judge"] = world.judge | {"api_base": f"{self.judge_vendor}/v1", "price": price}
        self._write("bundles/bench.yaml", json.dumps(bundle))
        for vendor in {self.vendor, self.judge_vendor}:
            aliases = dict.fromkeys((GOOD, "fair-2026-01-15")) | world.alias
            data = json.dumps(aliases).encode()
            request = urllib.request.Request(f"{vendor}/control/aliases", data=data, method="PUT")
            urllib.request.urlopen(request, timeout=10).close()
        self._move_pointer()

    def run(self, world: World) -> str:
        """One eval; returns its run key. Recorded judges answer at an address of their own."""
        self.judge_vendor = self._recorded_judges() if world.judge and world.judge["prompt"] == PLAIN else self.vendor
        self.become(world)
        (self.root / ".touchstone" / "response_cache.db").unlink(missing_ok=True)  # as on another machine
        dataset = "golden/judged" if world.judged else "golden/plain"
        plan = plan_eval(load_settings(), EvalRequest(bundle="bench", dataset=dataset))
        return asyncio.run(evaluate(plan)).run_key

    def _recorded_judges(self) -> str:
        """Starts them the first time, on the answers of a run without them."""
        if not self._judges:
            recording = self.root / "judges.jsonl"
            self._record_judges(self.run(JUDGED), recording)
            self._judges = self._open.enter_context(running(EmulatorOptions(recordings=(recording,))))
        return self._judges

    def _record_judges(self, run_key: str, path: Path) -> None:
        """What a fair judge (5) and a strict one (2) say to the answers of a run."""
        prompt = Prompt(version="1.0.0", template="Grade this: {payload}")
        lines = []
        cases = {case["id"]: case for case in map(json.loads, (self.root / "golden/judged/cases.jsonl").open())}
        for result in existing_spool(self.root / ".touchstone", run_key).cases().values():
            assert result.answer is not None
            payload = {
                "question": result.question,
                "answer": result.answer.text,
                "contexts": [chunk.text for chunk in result.answer.retrieval.chunks] if result.answer.retrieval else [],
                "reference": cases[result.case_id].get("reference"),
                "dimensions": RUBRIC["dimensions"],
            }
            asked = prompt.messages(payload=json.dumps(payload, ensure_ascii=False))[-1]["content"]
            for model, score in (("fair-2026-01-15", 5), ("strict-2026-02-20", 2)):
                answer = json.dumps({"scores": dict.fromkeys(RUBRIC["dimensions"], score), "reason": "as recorded"})
                lines.append(json.dumps({"model": model, "prompt": asked, "answer": answer}))
        path.write_text("\n".join(lines))

    def _move_pointer(self) -> None:
        settings = load_settings()
        config, source = load_retrieval_config(settings.root, "bench.yaml")
        index = ensure_index(config, source, settings.lance)
        with closing(Ledger(settings.ledger, settings.environment)) as ledger:
            live = live_pointer(ledger, "bench")
            if live is None or live.index != index:
                promote(ledger, settings.lance, index, after=live.sequence if live else 0, reason="benchmark")

    def _golden(self, name: str, lines: list[str], scorers: list[dict[str, Any]]) -> None:
        self._write(f"golden/{name}/cases.jsonl", "\n".join(lines))
        self._write(f"golden/{name}/policy.yaml", json.dumps({"scorers": scorers, "minimum_cases": 1}))

    def _judge_prompt(self, name: str, head: str, tail: str) -> None:
        asked = "Grade the answer in the input. Answer only with JSON of this schema:\n{schema}\n\ninput: {payload}"
        prompt = {"version": "1.0.0", "system": head, "template": f"{asked}\n\nAs here:\n{tail}"}
        self._write(f"prompts/{name}/1.0.0.yaml", json.dumps(prompt | {"parameters": {"temperature": 0}}))

    def _write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@contextmanager
def bench(seed: int, cases: int = 150) -> Iterator[Bench]:
    """A project in a temporary folder with its vendor; it becomes the current directory."""
    apply_defaults()
    came_from = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, emulated_vendor("--seed", str(seed)) as vendor, ExitStack() as until:
        os.chdir(folder)
        try:
            yield Bench(Path(folder), vendor, seed, cases, until)
        finally:
            os.chdir(came_from)


def attribute_fault(made: Bench, fault: Fault, before: str) -> AttributionReport:
    """Let the fault happen, run the eval after it, and ask what did it."""
    world = fault.after(harmless(fault.before) if fault.decoys else fault.before)
    after = made.run(world)
    settings = load_settings()
    plan = plan_replays(settings, AttributionRequest(before, after))
    return asyncio.run(attribute(settings, plan))


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


FACTORS: tuple[Swap, ...] = ("model", "prompt", "retrieval", "index")


def chance_alone(runs: int, seed: int, cases: int = 60) -> dict[str, int]:
    """Verdicts where nothing happened but noise: flaky cases, and four factors that differ and do nothing."""
    noise = random.Random(seed)
    verdicts: dict[str, int] = dict.fromkeys(["named", "by elimination", "interaction", "undecided"], 0)
    states = tuple(FactorState(factor=factor, standing=Standing.SWAPPABLE) for factor in FACTORS)
    for _ in range(runs):
        passes = {f"{number}": noise.betavariate(0.6, 0.4) for number in range(cases)}
        before, after = ({case: float(noise.random() < p) for case, p in passes.items()} for _ in range(2))
        fallen = tuple(Fallen(case_id=case, before=1, after=0) for case in passes if before[case] > after[case])
        rose = sum(after[case] > before[case] for case in passes)
        evidence = Evidence(fallen=fallen, fell=len(fallen), rose=rose, factors=states)
        decision = _play_out(evidence, lambda case, passes=passes: float(noise.random() < passes[case]))
        verdicts["by elimination" if decision.by_elimination else decision.verdict.value] += 1
    return verdicts


def _play_out(
    evidence: Evidence, draw: Callable[[str], float], batch: int = 12, trials: int = 4
) -> AttributionDecision:
    """As tasks.replay goes on: batch by batch, each case `trials` times at most, a look after each."""
    units = [case.case_id for _ in range(trials) for case in evidence.fallen]
    arms: list[tuple[Swap, ...]] = [(), *((factor,) for factor in FACTORS), FACTORS]
    scores: dict[tuple[Swap, ...], dict[str, tuple[float | None, ...]]] = {arm: {} for arm in arms}
    decision = decide_attribution(evidence)
    for start in range(0, len(units), batch):
        if decision.next is None:
            break
        for case in units[start : start + batch]:
            for arm in arms:
                scores[arm][case] = (*scores[arm].get(case, ()), draw(case))
        replays = [Replay(swaps=arm, scores=scores[arm], control=scores[()]) for arm in arms[1:]]
        decision = decide_attribution(evidence.model_copy(update={"control": scores[()], "replays": tuple(replays)}))
    return decision


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", default="", help="Faults whose name or factor holds this")
    arguments.add_argument("--null-runs", type=int, default=1000)
    options = arguments.parse_args()
    chosen = [fault for fault in FAULTS if options.only in fault.name or options.only in fault.culprit]
    right = calls = 0
    print(f"{'fault':32} {'culprit':10} {'named':26} {'fell':>4} {'calls':>5}  why", flush=True)
    with bench(options.seed) as made:
        befores: dict[str, str] = {}
        for fault in chosen:
            key = json.dumps([fault.before.judged, fault.before.judge])
            if key not in befores:
                befores[key] = made.run(fault.before)
            report = attribute_fault(made, fault, befores[key])
            decision = report.decision
            named = "+".join(decision.culprits) or "undecided"
            right, calls = right + (named == fault.culprit), calls + report.calls
            named += " (by elimination)" if decision.by_elimination else ""
            figures = f"{fault.name:32} {fault.culprit:10} {named:26} {report.fell:4} {report.calls:5}"
            print(f"{figures}  {decision.reason}", flush=True)
    print(f"named the culprit in {right} of {len(chosen)} (limit {LIMIT} of {len(FAULTS)})")
    print(f"{calls / len(chosen):.0f} calls each; {time.process_time():.0f} CPU-s in all, beside the emulator's")
    by_chance = chance_alone(options.null_runs, options.seed)
    print(f"where nothing but noise happened, {options.null_runs} times (limit 5 % named): {by_chance}")
    wrong = options.null_runs - by_chance["undecided"]
    if right < LIMIT * len(chosen) / len(FAULTS) or wrong > 0.05 * options.null_runs:
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
