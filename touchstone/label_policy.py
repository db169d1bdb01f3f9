"""policy.yaml, field `labels`: what people are asked about live answers, how many, and when a judge agrees enough."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Scale = Literal["pass_fail", "one_to_five"]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(_Closed):
    """One thing that people say of an answer, and the judge's metric that says it too."""

    metric: str = Field(pattern=r"^[\w.-]{1,80}$", description="Name of the label, and of the assessment in MLflow")
    asks: str = Field(min_length=1, description="The question, as people read it")
    scale: Scale = "pass_fail"
    judge: str = Field(default="", description="The judge's metric that is compared with it; empty: of the same name")

    @field_validator("metric")
    @classmethod
    def is_not_mlflows_own(cls, metric: str) -> str:
        if metric.casefold() == "feedback":
            raise ValueError("MLflow keeps the name `Feedback` for a question of its own; choose another")
        return metric

    @property
    def judged_by(self) -> str:
        return self.judge or self.metric


class CalibrationPolicy(_Closed):
    """Floors that the lower confidence bounds must reach."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="One-sided, of each bound")
    agreement: float = Field(default=0.80, gt=0, lt=1)
    true_pass_rate: float = Field(default=0.80, gt=0, lt=1, description="Of what people pass, the judge passes")
    true_fail_rate: float = Field(default=0.70, gt=0, lt=1, description="Of what people fail, the judge fails")
    minimum_labels: int = Field(default=300, ge=1, description="With fewer labelled answers it is provisional")
    pass_at: float = Field(default=0.75, gt=0, le=1, description="Least share of a scale that passes: 4 of 1 to 5")


_QUESTIONS = (
    Question(
        metric="faithfulness",
        asks="Is all that the answer says in the documents that it was given? (open the full trace)",
        judge="judge_faithfulness",
    ),
    Question(
        metric="relevance",
        asks="Does the answer say what was asked, all of it and to the point?",
        judge="judge_relevance",
    ),
)


class LabelPolicy(_Closed):
    """What goes into the weekly queue, and what is made of its labels."""

    per_week: int = Field(default=50, ge=1, le=5000, description="Answers in a week's queue")
    minimum_per_stratum: int = Field(
        default=2, ge=1, description="As far as a stratum has them and the week's number allows"
    )
    reviewers: tuple[str, ...] = Field(default=(), max_length=10, description="Users of MLflow who get the queue")
    questions: tuple[Question, ...] = Field(default=_QUESTIONS, min_length=1)
    calibration: CalibrationPolicy = CalibrationPolicy()

    @field_validator("questions")
    @classmethod
    def metrics_are_unique(cls, questions: tuple[Question, ...]) -> tuple[Question, ...]:
        names = [question.metric.casefold() for question in questions]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two questions have the metric {doubled[0]!r}")
        return questions

    def question(self, metric: str) -> Question | None:
        return next((question for question in self.questions if question.metric == metric), None)
