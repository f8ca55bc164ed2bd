"""Torch as it comes, where several threads want it so at once."""

from contextlib import ExitStack

import torch

from multigate.nn.defaults import defaults

CPU = torch.device("cpu")


def test_the_type_of_a_caller_is_back_once_the_last_has_left() -> None:
    """The first to enter may leave first, as threads do."""
    torch.set_default_dtype(torch.float64)
    try:
        first, second = ExitStack(), ExitStack()
        first.enter_context(defaults(CPU))
        second.enter_context(defaults(CPU))
        first.close()
        assert torch.get_default_dtype() == torch.float32, "the second is within"
        second.close()
        assert torch.get_default_dtype() == torch.float64
        with defaults(CPU):
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
