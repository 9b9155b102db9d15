"""Models whose parameters lie in several processes (FSDP2)."""

from ..processes import launch

SPECS = ["window:4|sinks:1", "adaptive_span:max=20,ramp=4|sinks:1", "top_blocks:block=4,k=2"]


def test_a_sharded_model_has_the_gradients_of_a_whole_one():
    launch("-m", "tests.training.sharded", *SPECS)
