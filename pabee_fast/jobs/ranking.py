"""Workers that rank candidates: tables of pairs in, scores and ranks in each query's list out."""

import logging
from dataclasses import dataclass, replace

import pyarrow as pa

from pabee_fast.jobs.columns import RANKED, ranked_columns
from pabee_fast.jobs.recipe import Recipe
from pabee_fast.jobs.worker import About, Task, Worker
from pabee_fast.reranking.scorer import ListScorer, open_list_scorer
from pabee_fast.scoring.answers import Answers
from pabee_fast.scoring.load import Setting
from pabee_fast.tables.lists import runs

logger = logging.getLogger(__name__)


class RankingWorker(Worker):
    """Ranks the candidates of tasks that hold whole lists."""

    scorer: ListScorer

    def __init__(self, scorer: ListScorer) -> None:
        super().__init__(scorer)
        self.schema = RANKED
        self._told = False

    def about(self, setting: Setting) -> About:
        """Return what this worker runs."""
        found, scorer = super().about(setting), self.scorer
        own = {"top_k": str(scorer.top_k), "label": scorer.labels[scorer.label]}
        return replace(found, identity=found.identity | own)

    def columns(self, task: Task, answers: Answers) -> pa.RecordBatch:
        """Return the answers to a task's rows as result columns."""
        lists, queries = runs(task.columns[0]), task.columns[0]
        if not self._told and lists[-1] >= len(queries.unique().drop_null()):
            self._told = True
            logger.warning(
                "%s: rows of one query stand apart, and each run of neighbours is ranked as a list of its own; sort "
                "the table by query if they are one",
                task.file,
            )
        ranks = self.scorer.ranks(answers, lists)
        return ranked_columns(answers, self.scorer.shown_scores(answers), ranks)


@dataclass(frozen=True)
class RankingRecipe(Recipe):
    """What a ranking worker is made from: a recipe, and the arguments of `ListScorer.rank_by`."""

    top_k: int | None = 10
    label: str | int | None = None

    def worker_for(self, setting: Setting) -> Worker:
        options = self.scorer_options
        return RankingWorker(
            open_list_scorer(self.model, self.policy, setting, top_k=self.top_k, label=self.label, **options)
        )
