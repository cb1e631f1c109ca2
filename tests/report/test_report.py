"""The report: what it works out, the page it makes, and the command."""

import base64
import dataclasses
import html.parser
import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

import pabee_fast as pf
from pabee_fast.calibration.learned_rows import LearnedRows, remember
from pabee_fast.calibration.risks import Risk, answers
from pabee_fast.cli import app
from pabee_fast.models.heads import BACKBONE
from pabee_fast.report.claims import claims
from pabee_fast.report.make import make_report
from pabee_fast.report.metrics import METRICS
from pabee_fast.report.page import tag, text
from pabee_fast.report.rule import Clock, Rule, Stored
from pabee_fast.report.sections import in_short, report
from pabee_fast.report.settings import ReportSettings
from pabee_fast.report.study import Candidates, Study, looks_at_rows
from tests.calibration.traces import CONDITIONS, made_up
from tests.conftest import tiny_model, tiny_stock

HOSTILE = '<script>alert("$x$ & y")</script>'


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pabee_fast.report.claims.RESAMPLES", 60)


def study(rows: int = 120, seeds: int = 1, kind: str = "label", **changes: Any) -> Study:
    """Of made-up traces, whose labels are the first one's last answers but for some rows."""
    classes = 1 if kind == "value" else 3
    first = made_up(rows, classes=classes, kind=kind)  # type: ignore[arg-type]
    labels = first.labels
    assert labels is not None
    labels = labels + 0.1 * torch.arange(rows).remainder(7) if kind == "value" else labels.roll(1, 0)
    labels[: rows // 2] = answers(first.logits[-1], first.kind)[: rows // 2]
    traces = [
        dataclasses.replace(first, logits=first.logits + seed * torch.randn(first.logits.shape), labels=labels)
        for seed in range(seeds)
    ]
    generator = torch.Generator().manual_seed(9)
    shuffled = labels[torch.randperm(rows, generator=generator)]
    given: dict[str, Any] = {
        "model": "a model", "data": "some rows", "texts": [(f"text {i}",) for i in range(rows)],
        "traces": tuple(traces), "truncated": {3: (shuffled,)}, "tolerance": 0.5 if kind == "value" else None,
    }  # fmt: skip
    return Study(**given | changes)


def test_a_cross_fitted_point_answers_each_half_by_what_the_other_chose() -> None:
    made = study()
    candidates = Candidates(made)
    point = candidates.best(looks_at_rows, 0.6, "best")
    assert point is not None
    trace, (one, other) = made.traces[0], candidates.halves
    for policy, half in zip(point.policies, (other, one), strict=True):
        found = pf.replay(trace, policy)
        assert torch.equal(point.answers[0][half], answers(found.logits, "label")[half])
        choosing = one if half is other else other
        seen = pf.replay(trace.select(choosing), policy)
        assert 1 / seen.layer_ratio <= 0.6
    assert point.score[0] == METRICS["accuracy"](point.answers[0], made.labels)
    assert sorted(torch.cat(candidates.halves).tolist()) == list(range(120))


@pytest.mark.parametrize("metric", ["accuracy", "macro-F1"])
def test_no_candidate_does_better_on_the_half_that_chooses(metric: str) -> None:
    made = study(60, metric=metric)
    candidates = Candidates(made)
    point = candidates.best(looks_at_rows, 0.7, "best")
    assert point is not None
    half = candidates.halves[0]
    replayer = pf.Replayer(made.traces[0].select(half))

    def score(policy: pf.Policy) -> float:
        return METRICS[metric](answers(replayer.replay(policy).logits, "label"), made.labels[half])

    rivals = candidates.policies[::40]
    able = [policy for policy in rivals if 1 / replayer.replay(policy).layer_ratio <= 0.7]
    best = [score(policy) for policy in able if not isinstance(policy, pf.FixedDepth)]
    assert score(point.policies[0]) >= max(best)


def test_every_claim_has_a_test_and_is_adjusted_for_their_number() -> None:
    made = study(300)
    found = claims(made, Candidates(made))
    assert [claim.test for claim in found] == ["McNemar, exact"] * 4
    against_truncated = found[0]
    assert "truncated to 3 layers" in against_truncated.second
    # The truncated model's answers are shuffled labels.
    assert against_truncated.verdict == "better"
    assert against_truncated.low > 0
    assert all(claim.p_value <= claim.adjusted <= 1 for claim in found)
    assert found[-1].second == "full depth"


def test_a_seed_is_one_of_several_pairs_of_a_bootstrap() -> None:
    made = study(80, seeds=2)
    assert {claim.test for claim in claims(made, Candidates(made))} == {"paired bootstrap"}


class Reader(html.parser.HTMLParser):
    """Collects elements and visible text, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((name, dict(attributes)))
        if name not in ("meta", "img"):
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


@pytest.mark.parametrize(("kind", "seeds"), [("label", 1), ("label", 2), ("label_set", 1), ("value", 1)])
def test_a_page_answers_every_question_for_every_kind_of_answer(kind: str, seeds: int) -> None:
    made = study(60, seeds, kind, facts={"hardware": "a machine", "dtype": "float32"}, stored=Stored(pf.FixedDepth(4)))
    page = report([made])
    reader = read(page)
    said = " ".join(reader.words)
    for question in (
        "How good is each head?", "What does speed cost?", "Is any of it better", "err independently?",
        "later layers undo", "Where do rows leave?", "ensemble of all heads", "truncated to 3", "a machine", "float32",
        "Left earliest by", "Left latest by", "60", "Is the stored rule fine?", "nothing is promised of it",
    ):  # fmt: skip
        assert question in said, question
    assert ("±" in said) == (seeds > 1) or "so no ± is shown" in said
    assert sum(name == "img" for name, _ in reader.seen) == 5
    assert report([made]) == page, "the same study, the same page"


def test_the_page_refers_to_nothing_outside_and_escapes_what_it_shows() -> None:
    made = study(60, model=HOSTILE, data=HOSTILE, texts=[(HOSTILE, HOSTILE)] * 60, label_names=(HOSTILE, "b", "c"))
    page = report([made, made])
    reader = read(page)
    assert "<script" not in page
    assert HOSTILE in " ".join(reader.words)
    links = [value for _, attributes in reader.seen for key, value in attributes.items() if key in ("src", "href")]
    assert len(links) == 12
    assert all(str(link).startswith(("data:image/svg+xml;base64,", "#study-")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert text(tag("b", "<")) == "<b>&lt;</b>"


def test_long_texts_are_cut() -> None:
    page = report([study(60, texts=[("w" * 5000,)] * 60)])
    assert "w" * 281 not in page
    assert "w" * 280 + " …" in page


@pytest.mark.parametrize("kind", ["label", "value"])
def test_what_cannot_be_counted_in_some_seed_is_said_so_on_the_page(kind: str) -> None:
    """Two seeds without an error at full depth, and a head that answers all rows alike."""
    made = study(60, 2, kind)
    logits, labels = made.traces[0].logits.clone(), answers(made.traces[0].logits[-1], made.traces[0].kind)
    logits[0] = 0.0
    made = dataclasses.replace(
        made, traces=tuple(dataclasses.replace(trace, logits=logits, labels=labels) for trace in made.traces)
    )
    assert "none" in " ".join(read(report([made])).words)


@pytest.mark.parametrize("last", [1.5, math.nan])
def test_full_depth_that_tells_no_rows_apart_is_refused(last: float) -> None:
    made = study(60, kind="value")
    logits = made.traces[0].logits.clone()
    logits[-1] = last
    with pytest.raises(pf.InputError, match="full depth has no Pearson"):
        dataclasses.replace(made, traces=(dataclasses.replace(made.traces[0], logits=logits),))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"traces": ()}, "needs a trace"),
        ({"texts": [("a",)]}, "1 texts for 120 rows"),
        ({"truncated": {6: ()}}, "has 6 layers, the model 6"),
        ({"metric": "Pearson"}, "accuracy, macro-F1, Matthews"),
        ({"tolerance": 0.5}, "tolerance where answers are values"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        study(**changes)


def test_seeds_are_of_the_same_rows_with_labels_of_two_kinds() -> None:
    made = study()
    (trace,) = made.traces
    without = pf.Trace(trace.logits, trace.lengths, "label", CONDITIONS)
    with pytest.raises(pf.InputError, match="needs labels"):
        study(traces=(trace, without))
    other = dataclasses.replace(trace, logits=trace.logits[1:])
    with pytest.raises(pf.InputError, match="one recipe"):
        study(traces=(trace, other))
    with pytest.raises(pf.InputError, match="two labels or more"):
        study(traces=(dataclasses.replace(trace, labels=torch.zeros(120, dtype=torch.int64)),))


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a model with heads, a truncated one, and a labelled table."""
    folder = tmp_path_factory.mktemp("report")
    options: dict[str, Any] = {"vocab_size": len(tiny_tokenizer), "num_labels": 2}
    for seed in (0, 1):
        tiny_model("bert", seed=seed, **options).save_pretrained(folder / f"seed-{seed}")
    tiny_stock("bert", seed=2, **options | {"num_hidden_layers": 3}).save_pretrained(folder / "truncated")
    for name in ("seed-0", "seed-1", "truncated"):
        tiny_tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)
    words = ["a", "bad", "film", "good", "is", "very"]
    rows = [{"text": " ".join(draw.choices(words, k=5)), "label": i % 2} for i in range(60)]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(folder: Path, output: Path, *more: object) -> Result:
    words = ["report", folder / "dev.jsonl", "--model", folder / "seed-0", "--output", output, "--device", "cpu"]
    return CliRunner().invoke(app, [str(word) for word in (*words, *more)])


def test_the_command_writes_a_page_from_seeds_and_truncated_models(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    result = run(folder, output, "--model", folder / "seed-1", "--truncated", folder / "truncated", "--name", "tiny",
                 "--dtype", "float32")  # fmt: skip
    assert result.exit_code == 0, result.output
    said = " ".join(read(output.read_text(encoding="utf-8")).words)
    for words in ("tiny on dev.jsonl", "3 layers (1)", "2; ± is", "float32 (asked for)", "cpu (", "LABEL_0"):
        assert words in said, words


def test_seeds_that_number_their_labels_otherwise_are_read_by_name(folder: Path, tmp_path: Path) -> None:
    names = ("bad", "good")
    model = pf.from_pretrained(folder / "seed-0")
    tokenizer = AutoTokenizer.from_pretrained(folder / "seed-0")
    for place, order in (("one", [0, 1]), ("other", [1, 0])):
        for head in (model.classifier, *model.exit_heads):
            head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
        model.config.id2label = {i: names[label] for i, label in enumerate(order)}
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
        model.save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    table = tmp_path / "named.jsonl"
    lines = [json.dumps({"text": row["text"], "label": names[row["label"]]}) + "\n" for row in rows]
    table.write_text("".join(lines))
    settings = ReportSettings(
        tables=[str(table)],
        model=[str(tmp_path / "one"), str(tmp_path / "other")],
        output=tmp_path / "report.html",
        dtype="float32",
        device="cpu",
    )
    said = " ".join(read(make_report(settings).page).words)
    assert said.count("±") == 1, "one model twice: nothing differs, and only the legend has the sign"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--label-column", "stars"], "no label column 'stars'"),
        (["--metric", "Spearman"], "accuracy, F1, Matthews"),
        (["--tolerance", "0.5"], "tolerance where answers are values"),
        (["--truncated", "SEED"], "has 6 layers, the model 6"),
    ],
)
def test_what_the_command_cannot_use_names_the_fix(
    options: list[str], says: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pabee_fast.runtime.engine.Engine.every_head")  # it is said before the model runs
    options = [str(folder / "seed-0") if word == "SEED" else word for word in options]
    result = run(folder, tmp_path / "report.html", *options)
    assert isinstance(result.exception, pf.InputError), result.output
    assert says in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_page_whose_directory_is_absent_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    assert "there is no directory" in str(run(folder, tmp_path / "absent" / "report.html").exception)


@pytest.mark.parametrize("max_length", [None, 8])
def test_a_stored_policy_is_shown_with_what_its_promise_is_worth_here(
    max_length: int | None, folder: Path, tmp_path: Path
) -> None:
    tuned = Path(shutil.copytree(folder / "seed-0", tmp_path / "tuned"))
    texts = [f"good film {' '.join(['very'] * (i % 7))} {['bad', 'is', 'a'][i % 3]} {i}" for i in range(300)]
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["tune", table, "--model", tuned, "--epsilon", 0.5, "--delta", 0.4, "--dtype", "float32", "--device", "cpu"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    more = [] if max_length is None else ["--max-length", max_length]
    words = ["report", folder / "dev.jsonl", "--model", tuned, "--output", tmp_path / "report.html", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--dtype", "float32", *more]])
    assert result.exit_code == 0, result.output
    said = " ".join(read((tmp_path / "report.html").read_text(encoding="utf-8")).words)
    assert ("void here: " in said) == (max_length is not None)
    assert "with probability at least" in said and "by the clock" in said
    assert "by the clock" in result.output and ("void here: " in result.output) == (max_length is not None)


def promised(policy: pf.Policy, epsilon: float, **changes: Any) -> Stored:
    risk = Risk("disagreement")
    guarantee = pf.Guarantee(policy, risk, epsilon, 0.05, rows=500, errors=0, ordering_rows=100, cost=0.5,
                             conditions=CONDITIONS)  # fmt: skip
    return Stored(policy, guarantee, **changes)


def test_a_rule_is_judged_by_its_own_exits_on_these_rows() -> None:
    made = study(400, stored=promised(pf.Patience(1), 0.9, clock=Clock(1.75, 100)))
    rule, found = made.rule, pf.replay(made.traces[0], pf.Patience(1))
    assert rule is not None
    assert torch.equal(rule.exit_layers, found.exit_layers) and rule.layer_ratio == found.layer_ratio
    own, full = answers(found.logits, "label"), answers(made.traces[0].logits[-1], "label")
    assert rule.differing == rule.errors == int((own != full).sum()) > 0
    said = " ".join(read(report([made])).words)
    share = f"{rule.differing / 400:.2%}"
    for words in (share, "1.75x", f"{found.layer_ratio:.2f}x", f"{METRICS['accuracy'](own, made.labels):.4f}", "kept"):
        assert words in said[: said.index("How good is each head?")], words
    lines = list(in_short(made))
    assert lines[0].startswith("a model on some rows: accuracy ") and share in " ".join(lines)


@pytest.mark.parametrize(
    ("epsilon", "void", "says"),
    [
        (0.9, (), "is kept: "),
        (0.01, (), "is broken here, "),
        (0.9, ("the tokenizer is another",), "is void here: the "),
    ],
)
def test_whether_the_promise_is_kept_is_said(epsilon: float, void: tuple[str, ...], says: str) -> None:
    made = study(400, stored=promised(pf.Patience(1), epsilon, void=void))
    assert made.rule is not None and says in made.rule.verdict
    assert says in " ".join(in_short(made))


def test_a_few_errors_above_the_promise_are_called_chance() -> None:
    (trace,) = study(400).traces
    rule = Rule.of(promised(pf.Patience(1), 0.01), trace, None)
    within = dataclasses.replace(rule, errors=6)
    assert "is not contradicted: 1.50% of these rows against 1.00% promised, within chance" in within.verdict


def test_without_a_stored_rule_the_report_says_how_to_have_one() -> None:
    assert "pabee-fast tune chooses one" in " ".join(in_short(study(60)))
    assert "No rule is stored with the model" in " ".join(read(report([study(60)])).words)


def svgs(page: str) -> list[str]:
    return [base64.b64decode(found).decode() for found in re.findall(r"svg\+xml;base64,([^\"]+)", page)]


def test_the_stored_rule_is_marked_in_every_figure() -> None:
    marked, unmarked = study(60, stored=Stored(pf.FixedDepth(4))), study(60)
    assert [svg.count("dc2626") > 0 or "stored: fixed-depth:4" in svg for svg in svgs(report([marked]))] == [True] * 5
    assert not any("dc2626" in svg for svg in svgs(report([unmarked])))


def test_lines_end_inside_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a deep model, whose curves go on to many times the speed that is shown."""
    drawn: list[Any] = []
    monkeypatch.setattr("pabee_fast.report.figures.as_svg", lambda figure: drawn.append(figure) or "<svg/>")
    deep = made_up(200, layers=12)
    report([study(200, traces=(deep,), texts=[("a",)] * 200, truncated={}, stored=Stored(pf.Patience(2)))])
    for axes in (axes for figure in drawn for axes in figure.axes):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            if line.get_transform() == axes.transData:
                xs, ys = line.get_xdata(), line.get_ydata()
                assert all(left <= x <= right for x in xs) and all(bottom <= y <= top for y in ys if y == y)


def test_heads_that_answer_all_rows_alike_are_told_of_on_the_page() -> None:
    made = study(120)
    logits = made.traces[0].logits.clone()
    logits[1] = logits[1, :1]
    made = dataclasses.replace(made, traces=(dataclasses.replace(made.traces[0], logits=logits),))
    assert "The head of layer 2 answers 95% of the rows or more alike" in " ".join(read(report([made])).words)


def test_a_report_says_how_many_of_its_rows_the_model_has_learned_from(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, learned = pf.from_pretrained(folder / "seed-0"), LearnedRows()
    lines = (folder / "dev.jsonl").read_text().splitlines()
    learned.add([(json.loads(line)["text"],) for line in lines[:30]])
    remember(model.config, BACKBONE, learned)
    model.save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(folder / "seed-0").save_pretrained(tmp_path / "trained")
    for place, says in (
        (folder / "seed-0", "no row could be looked up"),
        (tmp_path / "trained", "learned from 30 of "),
    ):
        caplog.clear()
        words = ["report", folder / "dev.jsonl", "--model", place, "--output", tmp_path / f"{place.name}.html"]
        assert CliRunner().invoke(app, [str(word) for word in [*words, "--device", "cpu"]]).exit_code == 0
        assert says in " ".join(read((tmp_path / f"{place.name}.html").read_text(encoding="utf-8")).words)
        assert ("flatter" in caplog.text) == (place.name == "trained")
    caplog.clear()
    assert run(folder, tmp_path / "two.html", "--model", tmp_path / "trained").exit_code == 0
    assert f"of {tmp_path / 'trained'}, fit or train has learned from 30 of" in caplog.text


def test_an_output_is_html_and_never_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    assert "name it .html" in str(run(folder, tmp_path / "report.pdf").exception)
    (tmp_path / "report.html").write_text("precious")
    assert "--overwrite" in str(run(folder, tmp_path / "report.html").exception)
    assert (tmp_path / "report.html").read_text() == "precious"


def test_a_metric_without_a_value_is_said_in_words() -> None:
    from pabee_fast.report.sections import _number, _p, _percent

    assert _number((math.nan, 0.0)) == _percent((math.nan, 0.0)) == _p(math.nan) == "none"
    assert _number((0.5, 0.01)) == "0.5000 ± 0.0100"
