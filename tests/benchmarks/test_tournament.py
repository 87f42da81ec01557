"""Tests of `benchmarks.tournament`, with made-up rows and a library of tensors."""

import contextlib
import json
import re
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from alr_fast import reference
from benchmarks import report
from benchmarks.harness import results
from benchmarks.harness.processes import Child
from benchmarks.harness.timing import host_turn
from benchmarks.kernels.problem import OPTIONS, Case, Problem
from benchmarks.kernels.task import first_columns
from benchmarks.tournament import __main__ as tournament
from benchmarks.tournament import contest
from benchmarks.tournament.candidates import (
    BANDWIDTH,
    COPY,
    LATENCY,
    PLAIN,
    STAGES,
    WHOLE,
    Candidate,
    Entrant,
    Unit,
    candidates_of,
    scores,
    units_of,
)
from benchmarks.tournament.launch_table import HEADER, enumerator, with_winners
from benchmarks.tournament.winners import RANGES, winners
from helpers.benchmark_rows import GPU, write_page

pytest.importorskip("rich", reason="benchmarks need the extra bench")

LINES = """\
sub_warp 1 32
half_warp 1 128
warp 1 256
two_warps 1 1024
eight_warps 1 4096
eight_warps 2 8192
sixteen_warps 1 8192
sixteen_warps 4 32768
sixteen_warps 16 131072
warp_32 1 1024
eight_warps_24 4 24576
warp_ring 1 1024
"""
CANDIDATES = candidates_of(LINES)
# Microseconds at the bandwidth shapes, where the copy takes 100; the others take 150.
TIMES = {"warp_32": 110.0, "warp_ring": 109.5, "eight_warps x 2": 105.0}


class Lab:
    """Measures units as a GPU might: some candidates are wrong, the copy takes 100 microseconds."""

    def __init__(self, wrong: str = "", most: int = 10**6) -> None:
        self.wrong, self.most = wrong, most
        self.units: list[Unit] = []

    def __call__(self, unit: Unit) -> list[dict]:
        if len(self.units) == self.most:
            raise KeyboardInterrupt
        self.units.append(unit)
        if unit.stage == "correctness":
            return [
                unit.failed(entrant, "it hangs")
                if str(entrant.candidate) == self.wrong
                else {**unit.row(entrant), "wrong": False}
                for entrant in unit.entrants
            ]
        rows = []
        for entrant in unit.entrants:
            time_us = TIMES.get(str(entrant.candidate), 150.0)
            row = {**unit.row(entrant), "p20_us": 1.0, "p50_us": time_us, "p80_us": 200.0}
            if unit.case not in LATENCY:
                row |= {"share_of_copy": 100 / time_us, "gigabytes_per_second": 1e5 / time_us}
            rows.append(row)
        copy = {**first_columns("tournament", unit.case, "copy"), "stage": unit.stage,
                "arithmetic": None, "finish": None, "any_index": False, "p50_us": 100.0,
                "gigabytes_per_second": 1000.0}  # fmt: skip
        return rows if unit.case in LATENCY else [*rows, copy]


def run(lab: Lab, rows: list[dict] = (), stages: tuple = tuple(STAGES), minutes: float = 1):
    """All rows, and those that were written before an interruption."""
    written: list[dict] = []

    def write(all_rows: list[dict]) -> None:
        written[:] = all_rows

    end = time.perf_counter() + 60 * minutes
    with contextlib.suppress(KeyboardInterrupt):
        tournament.run(stages, CANDIDATES, lab, rows, GPU, write, end)
    return written


@pytest.fixture(scope="module")
def all_rows() -> list[dict]:
    return run(Lab())


def test_every_stage_has_the_candidates_that_it_compares() -> None:
    lab = Lab(wrong="sixteen_warps")
    rows = run(lab)
    by_stage = {stage: [u for u in lab.units if u.stage == stage] for stage in STAGES}
    cases = {stage: [unit.case for unit in units] for stage, units in by_stage.items()}
    assert cases["correctness"] == [*BANDWIDTH, *LATENCY]
    assert cases["latency"] == list(LATENCY)
    assert cases["direct"] == cases["cut_down"] == cases["exponential"] == list(BANDWIDTH)
    # Two shapes have 1000 classes in each type.
    assert [case.classes for case in cases["sources"]] == [1000, 1000]
    case = Case(16384, 1000)

    def at(stage: str) -> list[str]:
        (unit,) = (unit for unit in by_stage[stage] if unit.case == case)
        return list(map(str, unit.entrants))

    assert at("direct") == ["two_warps", "warp_32"]
    assert at("cut_down") == [f"{name}, copy" for name in ("two_warps", "warp_32", "warp_ring")]
    assert at("sources") == ["warp_32", "warp_ring"]
    assert at("exponential") == [
        "warp_ring", "warp_ring, plain exponential", "warp_32", "warp_32, plain exponential",
        "two_warps", "two_warps, plain exponential", "warp_ring, any index",
    ]  # fmt: skip
    assert not any(
        str(entrant.candidate) == "sixteen_warps"
        for unit in lab.units
        if unit.stage != "correctness"
        for entrant in unit.entrants
    )
    failed = [row for row in rows if row.get("wrong")]
    assert {row["variant"] for row in failed} == {"sixteen_warps"}
    assert {row["skipped"] for row in failed} == {"it hangs"}


def test_a_stage_alone_is_preceded_by_correctness() -> None:
    lab = Lab()
    run(lab, stages=("latency",))
    assert list(dict.fromkeys(unit.stage for unit in lab.units)) == ["correctness", "latency"]


def test_a_killed_run_continues_where_it_was(all_rows: list[dict]) -> None:
    total = Lab()
    run(total)
    for finished in (5, len(BANDWIDTH + LATENCY) + 3, len(total.units) - 1):
        rows = run(Lab(most=finished))
        rest = Lab()
        continued = run(rest, rows)
        assert len(rest.units) == len(total.units) - finished
        assert continued == all_rows
    # Within correctness, rows of single candidates are kept.
    rows = [row for row in all_rows if row["stage"] == "correctness"][:-2]
    (unit,) = units_of("correctness", CANDIDATES, rows)
    assert [entrant.finish for entrant in unit.entrants] == ["cluster", "polled"]


def test_what_does_not_fit_the_time_is_left_for_later(capsys: pytest.CaptureFixture) -> None:
    lab = Lab()
    assert run(lab, minutes=0) == []
    assert lab.units == []
    shapes = len(BANDWIDTH + LATENCY)
    assert f"correctness: 0 shapes in 0 s, {shapes} left for --resume" in capsys.readouterr().err


def test_winners_are_the_fastest_or_a_simpler_one_that_is_as_good(all_rows: list[dict]) -> None:
    found = {(row["logits_dtype"], row["low"]): row for row in winners(all_rows)}
    for dtype in ("float32", "bfloat16"):
        # warp_ring is half a percent faster than warp_32, which needs no shared memory.
        assert found[dtype, 256]["variant"] == "warp_32"
        assert found[dtype, 256]["high"] == 1024
        assert found[dtype, 4096]["variant"] == "eight_warps x 2"
        # As fast as the other candidates, with fewer blocks in a cluster.
        assert found[dtype, 16384]["variant"] == "sixteen_warps x 4"
        assert found[dtype, 32]["variant"] == "half_warp"  # by its time in a graph
    assert len(found) == 2 * len(RANGES)
    slower = [{**row, "share_of_copy": 0.85} if row["variant"] == "warp_32" else row
              for row in all_rows]  # fmt: skip
    ring = next(row for row in winners(slower) if row["low"] == 256)
    assert (ring["variant"], ring["source"]) == ("warp_ring", "ring")
    assert winners([]) == []


def test_a_winner_that_holds_shorter_rows_takes_those(all_rows: list[dict]) -> None:
    faster = [{**row, "share_of_copy": 0.99} if row["variant"] == "eight_warps_24 x 4" else row
              for row in all_rows]  # fmt: skip
    (row,) = (row for row in winners(faster) if (row["low"], row["logits_dtype"])
              == (16384, "float32"))  # fmt: skip
    assert row["high"] == 24576
    table = entries(with_winners(HEADER.read_text(), [row]), "kTableOfWords")
    assert ("24576", "EightWarps24", "4") in table
    assert ("32768", "SixteenWarps", "4") in table


def test_other_runs_of_a_candidate_do_not_count() -> None:
    unit = Unit("exponential", BANDWIDTH[0], ())
    row = {**unit.row(Entrant(CANDIDATES[2])), "p50_us": 100.0, "share_of_copy": 0.5}
    others = [row | {"arithmetic": PLAIN, "share_of_copy": 0.9},
              row | {"any_index": True, "share_of_copy": 0.9}]  # fmt: skip
    assert scores([row, *others]) == {2: 0.5}
    assert scores([row, row | {"share_of_copy": 0.6}, row | {"share_of_copy": 0.9}]) == {2: 0.6}


def entries(header: str, table: str) -> list[tuple[str, str, str]]:
    text = re.search(rf"{table}\[\] = \{{\n(.*?)\n\}};", header, re.DOTALL)[1]
    return re.findall(r"\{(\d+), Regime::k(\w+?)(?:, (\d+))?\},", text)


def winner(regime: str, low: int, high: int, dtype: str = "float32", blocks: int = 1) -> dict:
    source = "ring" if "ring" in regime else "direct"
    return {"regime": regime, "low": low, "high": high, "logits_dtype": dtype, "source": source,
            "blocks_per_row": blocks, "stage": "winner"}  # fmt: skip


def test_the_table_of_one_type_is_written() -> None:
    header = HEADER.read_text()
    assert with_winners(header, []) == header
    new = with_winners(header, [winner("warp_32", 256, 1024), winner("warp_32", 128, 256)])
    before = entries(header, "kTableOfWords")
    after = entries(new, "kTableOfWords")
    # Neighbours with the same choice are one entry.
    assert after == [*before[:2], ("1024", "Warp32", ""), *before[4:]]
    assert entries(new, "kTableOfHalves") == before
    outside = re.compile(r"begin: winners\n.*// end: winners", re.DOTALL)
    assert outside.sub("", new) == outside.sub("", header)
    both = with_winners(new, [winner("warp_32", 128, 1024, "bfloat16")])
    assert "static constexpr const auto& kTableOfHalves = kTableOfWords;\n" in both
    assert entries(both, "kTableOfWords") == after
    back = with_winners(both, [winner("warp", 128, 256, dtype) for dtype in ("float32", "bfloat16")]
                        + [winner("two_warps", 256, 1024, dtype)
                           for dtype in ("float32", "bfloat16")])  # fmt: skip
    assert back == header


def test_the_old_choice_remains_where_a_device_does_not_allow_the_new_one() -> None:
    header = HEADER.read_text()
    new = entries(with_winners(header, [winner("eight_warps", 4096, 8192, blocks=2)]),
                  "kTableOfWords")  # fmt: skip
    at = new.index(("8192", "EightWarps", "2"))
    assert new[at + 1] == ("8192", "SixteenWarps", "")
    new = entries(with_winners(header, [winner("warp_ring", 300, 600)]), "kTableOfWords")
    at = new.index(("300", "TwoWarps", ""))
    assert new[at + 1 : at + 4] == [
        ("600", "WarpRing", ""), ("600", "TwoWarps", ""), ("1024", "TwoWarps", ""),
    ]  # fmt: skip
    # A larger cluster is no replacement for a smaller one.
    new = entries(with_winners(header, [winner("eight_warps_32", 16384, 32768, blocks=2)]),
                  "kTableOfWords")  # fmt: skip
    assert [entry for entry in new if entry[0] == "32768"] == [("32768", "EightWarps32", "2")]


def test_names_of_regimes_in_cpp() -> None:
    text = (HEADER.parent / "regimes.h").read_text()
    shapes = re.findall(r'\{Regime::k(\w+), "(\w+)"', text)
    assert len(shapes) >= 8
    for name, regime in shapes:
        assert enumerator(regime) == name


def test_the_rows_become_tables_and_a_header(
    tmp_path: Path, all_rows: list[dict], capsys: pytest.CaptureFixture
) -> None:
    rows, header = tmp_path / "rows.json", tmp_path / "launch_table.h"
    rows.write_text(results.as_text(all_rows))
    header.write_text(HEADER.read_text())
    command = ["--rows", str(rows), "--header", str(header)]
    assert tournament.main(command) == 0
    shown = capsys.readouterr().out
    assert "+    {1024, Regime::kWarp32}," in shown and "pass --write-table" in shown
    assert "257 to 1024" in shown
    assert header.read_text() == HEADER.read_text()
    assert tournament.main([*command, "--write-table"]) == 0
    assert ("1024", "Warp32", "") in entries(header.read_text(), "kTableOfWords")
    capsys.readouterr()
    assert tournament.main(command) == 0
    assert "has these winners already" in capsys.readouterr().out
    wrong = [{**all_rows[0], "skipped": "it hangs", "wrong": True}, *all_rows[1:]]
    rows.write_text(results.as_text(wrong))
    assert tournament.main(command) == 1
    text = write_page(tmp_path, wrong)
    assert "| 257 to 1024 | float32 | warp_32 | direct | 16384 x 1000 | 90.9% (110.0) |" in text
    assert "16384 x 1000, float32, copy 1000 GB/s:" in text
    assert "| warp_ring | ring | 91.3% (109.5) | 91.3% (109.5) | 91.3% (109.5) | 91.3%" in text
    assert "it hangs" in text
    assert "## Choice of the kernels" in report.report({})


def test_without_a_gpu_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def error_of(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            tournament.main(words)
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no GPU was found" in error_of()
    assert "unknown stage 'final': choose from correctness, direct" in error_of("--stage", "final")
    assert "No such file" in error_of("--rows", str(tmp_path / "none.json"))
    (tmp_path / "other.json").write_text('[{"suite": "latency"}]')
    assert "has no rows" in error_of("--rows", str(tmp_path / "other.json"))


def test_resuming_takes_the_newest_rows_of_this_gpu_and_commit(tmp_path: Path) -> None:
    assert tournament.newest(tmp_path, GPU) is None
    row = {"suite": "tournament", "environment": GPU}
    other = {"suite": "tournament", "environment": {**GPU, "commit": "def5678"}}
    for name, rows in {
        "b": [row],
        "c": [other],
        "d": [{**row, "suite": "latency"}],
        "e": [],
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    assert tournament.newest(tmp_path, GPU).name == "b.json"


class Tensors:
    """A library whose candidates are the reference; those called "sub_warp" are wrong."""

    def step(self, entrant: Entrant, bank: torch.Tensor):
        return TensorStep(entrant, bank)


class TensorStep:
    def __init__(self, entrant: Entrant, bank: torch.Tensor) -> None:
        self.entrant, self.bank = entrant, bank
        self.loss, self.grad_scale = torch.zeros(1), torch.ones(1)

    def __call__(self, logits: torch.Tensor, index: torch.Tensor, grad: torch.Tensor) -> None:
        name = self.entrant.candidate.regime
        if name == "warp":
            raise RuntimeError("no kernel of that width")
        if self.entrant.arithmetic == COPY:
            grad.copy_(logits)
            return
        leaf = logits.detach().requires_grad_()
        loss = reference.alr_loss(leaf, self.bank, index, **OPTIONS)
        self.loss[0] = loss.detach()
        grad.copy_(torch.autograd.grad(loss, leaf)[0])
        if name == "sub_warp":
            grad *= 1.001
        if name == "half_warp":
            self.bank[(set(range(len(self.bank))) - set(index.tolist())).pop()] *= 2
        if name == "two_warps":
            self.grad_scale[0] = 2


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "Problem", lambda case, device, rows: Problem(case, "cpu", 300))
    monkeypatch.setattr(contest, "device_turn", lambda step, *_: host_turn(step, 1, "cpu")[0])
    monkeypatch.setattr(contest, "queue_time", lambda *_: 0.0)
    monkeypatch.setattr(contest, "capture", lambda step, steps: step)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_wrong_candidates_are_found_before_they_are_timed(on_the_cpu: None) -> None:
    case = Case(8, 12)
    entrants = tuple(Entrant(candidate, arithmetic) for candidate in CANDIDATES[:5]
                     for arithmetic in (WHOLE, COPY))  # fmt: skip
    arena = contest.Arena(Unit("correctness", case, entrants), Tensors(), "cpu")
    before = arena.problem.bank.clone()
    rows = list(map(arena.checked, entrants))
    why = {(row["regime"], row["arithmetic"]): row.get("skipped", "") for row in rows}
    assert "gradient is off" in why["sub_warp", WHOLE]
    assert "outside the batch" in why["half_warp", WHOLE]
    assert why["warp", WHOLE] == why["warp", COPY] == "no kernel of that width"
    assert "leaves a factor of 2" in why["two_warps", WHOLE]
    assert not any(why[key] for key in (("eight_warps", WHOLE), ("eight_warps", COPY),
                                        ("sub_warp", COPY)))  # fmt: skip
    assert all(row["wrong"] == bool(row.get("skipped")) for row in rows)
    assert torch.equal(arena.problem.bank, before)


def test_a_copy_that_computes_something_is_wrong(on_the_cpu: None) -> None:
    class Doubles(TensorStep):
        def __call__(self, logits, index, grad) -> None:
            grad.copy_(2 * logits)

    library = Tensors()
    library.step = Doubles
    unit = Unit("correctness", Case(8, 12), ())
    row = contest.Arena(unit, library, "cpu").checked(Entrant(CANDIDATES[4], COPY))
    assert row["skipped"] == "is no copy of logits and bank rows"


def test_timings_have_shares_of_the_copy(on_the_cpu: None) -> None:
    entrants = (Entrant(CANDIDATES[4]), Entrant(CANDIDATES[4], any_index=True))
    rows = contest.Arena(Unit("direct", Case(8, 12), entrants), Tensors(), "cpu").timed(0)
    assert [row["variant"] for row in rows] == ["eight_warps", "eight_warps", "copy"]
    assert [row["any_index"] for row in rows] == [False, True, False]
    for row in rows:
        assert row["share_of_copy"] == pytest.approx(rows[-1]["p50_us"] / row["p50_us"])
        assert row["calls"] == 3 * 10
    small = contest.Arena(Unit("latency", LATENCY[0], entrants[:1]), Tensors(), "cpu")
    (row,) = small.timed(0)
    assert row["p50_us"] > 0 and "share_of_copy" not in row


def fragile(parent: Connection, library: Path, seconds: float) -> None:
    """Stands in for `contest.serve`: dies at one candidate, hangs at another."""
    unit = parent.recv()
    if unit.case.classes == 8192:
        raise RuntimeError("CUDA out of memory")
    parent.send(None)
    while True:
        entrant = parent.recv()
        if entrant is None or entrant.candidate.regime == "half_warp":
            raise RuntimeError("an illegal memory access was encountered")
        if entrant.candidate.regime == "warp":
            time.sleep(60)
        parent.send({**unit.row(entrant), "wrong": False})


def test_a_process_that_fails_or_hangs_costs_one_regime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "serve", fragile)
    monkeypatch.setattr(contest, "_ANSWER_LIMIT", 2)
    monkeypatch.setattr(contest, "Child", lambda *words, method: Child(*words, method="fork"))
    monkeypatch.setattr(Child, "stop", lambda child: child._process.kill())
    referee = contest.Referee(Path("none"), 0.0)
    entrants = [Entrant(c, arithmetic) for c in CANDIDATES[:4] for arithmetic in (WHOLE, COPY)]
    rows = referee.rows(Unit("correctness", BANDWIDTH[0], tuple(entrants)))
    assert [row["regime"] for row in rows[::2]] == ["sub_warp", "half_warp", "warp", "two_warps"]
    assert [row["wrong"] for row in rows] == 2 * [False] + 4 * [True] + 2 * [False]
    why = [row.get("skipped", "") for row in rows]
    assert "illegal memory access" in why[2] and why[3] == f"not run again: {why[2]}"
    assert "no answer in 2 s" in why[4] and why[5] == f"not run again: {why[4]}"
    referee.stop()
    timed = referee.rows(Unit("direct", BANDWIDTH[0], tuple(entrants[:2])))
    assert ["illegal" in row["skipped"] for row in timed] == [True, True]
    # Inputs that do not fit are no fault of a regime.
    large = Unit("correctness", Case(8192, 8192), tuple(entrants[-2:]))
    assert [row["skipped"] for row in referee.rows(large)] == 2 * [
        "RuntimeError: CUDA out of memory"
    ]


def test_a_candidate_knows_its_source() -> None:
    sources = [Candidate(0, regime, 1, 32).source for regime in
               ("warp_32", "warp_ring", "warp_staged", "half_warp_16_prefetched")]  # fmt: skip
    assert sources == ["direct", "ring", "staged", "prefetched"]
