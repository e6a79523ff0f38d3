"""``docs/dna.md`` says what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from forgeone_shim.dna import score, source
from forgeone_shim.dna.entropy import FULL
from forgeone_shim.dna.fingerprint import FORMAT, ContainerDNA, Genome
from forgeone_shim.runtime.generation import VARIABLE

PAGE = (Path(__file__).parents[3] / "docs/dna.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]


def named(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def test_every_field_of_a_genome_is_there_and_no_other() -> None:
    first = next(number for number, row in enumerate(ROWS) if row[0] == "field of `dna.genome`")
    last = next(number for number, row in enumerate(ROWS) if "`policy`" in row[0])
    told = set().union(*(named(row[0]) for row in ROWS[first + 1 : last + 1]))
    assert told == {one.name for one in fields(Genome)}
    assert f"of the genome itself: {FORMAT}" in PAGE


def test_every_field_of_dna_is_there() -> None:
    row = next(row for row in ROWS if row[0] == "`dna`")
    assert named(row[1]) == {one.name for one in fields(ContainerDNA)} | {"seal", "genome"}


def test_the_parts_of_a_score_and_their_most_points() -> None:
    told = {row[0].strip("`"): int(row[1]) for row in ROWS if len(row) == 3 and row[1].isdigit()}
    assert told == dict(score.WEIGHTS)


@pytest.mark.parametrize("engine", sorted(score._ENGINES))
def test_the_points_of_engines(engine: str) -> None:
    assert f"{engine} {score._ENGINES[engine]}" in PAGE


def test_the_points_of_what_confines_a_program() -> None:
    row = next(row for row in ROWS if row[0] == "`isolation`")
    assert sorted(map(int, re.findall(r"(\d) for ", row[2]))) == sorted(score._NATIVE.values())


def test_numbers_of_entropy() -> None:
    assert f"up to {FULL}" in PAGE and VARIABLE in PAGE and source.RAW_ENTROPY == 1.0
