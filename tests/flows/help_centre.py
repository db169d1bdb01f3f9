"""What the tests of re-index share: a project with a small corpus, a golden set that asks for it, and a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conftest import Project

TOPICS = {
    "refunds": "A refund is paid within fourteen days of the return.",
    "shipping": "Parcels leave the warehouse on weekdays before noon.",
    "passwords": "Reset a forgotten password from the login page.",
    "warranty": "The warranty covers broken sensors for three years.",
    "invoices": "Invoices are sent by e-mail on the first of the month.",
    "batteries": "A battery lasts eleven months in ordinary weather.",
}


class HelpCentre:
    """A project with a small corpus, a golden set that asks for it, and a retrieval config `help` on both."""

    def __init__(self, project: Project, touchstone: Callable[..., tuple[int, Any]]) -> None:
        self.project = project
        self.folder = project.root / "help"
        for name, text in TOPICS.items():
            self.write(name, text)
        cases = [
            {
                "id": f"{name}-{n}",
                "question": f"Question {n}: {text}",
                "reference": " ".join(text.split()[:3]),
                "relevant_ids": [name],
            }
            for n in range(12)
            for name, text in TOPICS.items()
        ]
        self.dataset = project.golden_set("help", cases)
        self.configure()
        self._touchstone = touchstone

    def write(self, name: str, text: str) -> None:
        self.project.write(f"help/{name}.md", f"# {name.title()}\n\n{text}\n")

    def configure(self, **changes: Any) -> None:
        fields = {
            "name": "help",
            "version": "1.0.0",
            "source": {"path": "help"},
            "embedding_model": "hashing",
            "top_k": 2,
            "gate": {"dataset": self.dataset},
        }
        self.project.write("help.yaml", fields | changes)

    def reindex(self, *arguments: str) -> tuple[int, Any]:
        return self._touchstone("reindex", "--config", "help.yaml", "--json", *arguments)

    def list(self) -> dict[str, Any]:
        return self._touchstone("index", "list", "--config", "help.yaml", "--json")[1]

    def answers(self, question: str) -> list[str]:
        """Texts that the live index finds."""
        _, found = self._touchstone("index", "search", "--config", "help.yaml", question, "--json")
        return [chunk["text"] for chunk in found["chunks"]]
