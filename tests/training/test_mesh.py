"""Fine-tuning with the tokens of a context in several processes, and several such groups, equals that in one."""

import json

import pytest

from ..processes import TORCHRUN, launch
from .in_mesh import CASES, figures, run

pytestmark = pytest.mark.slow  # four processes; `test_in_two` shares contexts between two


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Return what each of four processes has found."""
    folder = tmp_path_factory.mktemp("four")
    launch("-m", "tests.training.in_mesh", folder, launcher=(*TORCHRUN[:-1], "4"))
    return [json.loads((folder / f"found-{process}.json").read_text()) for process in range(4)]


@pytest.mark.parametrize("case", CASES)
def test_losses_and_perplexities_are_those_of_one_process(four, case, tmp_path):
    wanted = figures(run(case, tmp_path / "one"))
    kinds = [case, "one context", "resumed"] if case == "halo" else [case]
    for found in four:
        for kind in kinds:
            for name, values in wanted.items():
                assert found[kind][name] == pytest.approx(values, rel=1e-5), (kind, name)
        # DDP sums in another order at first, which three or more processes can notice: `test_in_two` is exact.
        assert found["resumed"]["losses"] == pytest.approx(found["halo"]["losses"], rel=1e-6)


def test_what_has_no_meaning_on_shards_is_refused_in_every_process(four):
    messages = {
        "adaptive": "sequence_parallel is for static masks",
        "unpatched": "no patched model ran on the shards",
        "three": "sequence_parallel must divide the number of processes, got 3 for 4 processes",
        "short": "context must be at least the 4 processes that share it, got 3",
        "batch": "batch_size counts all processes and must be a multiple of their number, got 3 for 2 groups of 2",
    }
    for found in four:
        assert found["refused"].keys() == messages.keys()
        for name, message in messages.items():
            assert message in found["refused"][name]
