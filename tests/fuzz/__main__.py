"""The long form of the fuzz tests, for the night:

    python -m tests.fuzz --minutes 30
    python -m tests.fuzz --minutes 5 --target frame --seed 7
    python -m tests.fuzz --minutes 5 --target frame --atheris

Each target gets an equal part of the time. An input that raises what it should not is written to
tests/fuzz/found, where `make test` tries it for good; exits 1 then. With atheris (Linux, installed
apart) coverage leads the way, for one target at a time; without it, seeds and chance do.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from pathlib import Path

FOUND = Path(__file__).parent / "found"


def keep(name: str, data: bytes) -> Path:
    """Writes an input down, under the name of its target."""
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name.replace(' ', '_')}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def name_of(path: Path) -> str:
    """The target of an input that was kept."""
    return path.name.rpartition("-")[0].replace("_", " ")


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, list[Path]]:
    """How many inputs were tried, and which were kept: those that raised, each error once."""
    from tests.fuzz.targets import inputs, try_one

    ends_s, count = time.monotonic() + seconds, 0
    found: dict[str, Path] = {}
    for data in inputs(name, random.Random(f"{name} {seed}")):
        count += 1
        try:
            try_one(name, data)
        except Exception as error:  # that is what we are here for; the night goes on
            found.setdefault(f"{type(error).__name__}: {str(error)[:60]}", keep(name, data))
        if count % 256 == 0 and time.monotonic() > ends_s:
            break
    return count, list(found.values())


def fuzz_with_atheris(name: str, seconds: float) -> None:
    """Takes the process over; libFuzzer writes what it finds to the current folder."""
    import atheris

    with atheris.instrument_imports(include=["mesh", "runtime", "planner", "apps"]):
        from tests.fuzz.targets import try_one
    arguments = [sys.argv[0], f"-max_total_time={int(seconds)}", "-max_len=4096"]
    atheris.Setup(arguments, lambda data: try_one(name, data))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--atheris", action="store_true", help="needs --target")
    asked = parser.parse_args()
    if asked.atheris:
        if asked.target is None:
            parser.error("--atheris takes one --target")
        fuzz_with_atheris(asked.target, asked.minutes * 60)
    from tests.fuzz.targets import TARGETS  # not before atheris could mark what is imported

    names = [asked.target] if asked.target else sorted(TARGETS)
    if not set(names) <= TARGETS.keys():
        parser.error(
            f"there is no target {asked.target!r}; there are: {', '.join(sorted(TARGETS))}"
        )
    found: list[Path] = []
    for name in names:
        count, kept = fuzz(name, asked.minutes * 60 / len(names), asked.seed)
        print(f"{name:>14}  {count:9d} inputs  {len(kept)} found", flush=True)
        found += kept
    for path in found:
        print(f"kept {path}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
