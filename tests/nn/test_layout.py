"""Layouts change where numbers lie and nothing else."""

import pytest
import torch
from torch import Tensor

from multigate.nn.layout import (
    Transposed,
    batch_last,
    for_each,
    lies_last,
    mean_of_copies,
    neighbours,
    side_by_side,
    turned,
    units,
)
from multigate.nn.parallel import is_one, one_input

B, N, H = 6, 3, 5


def of_any_layout() -> list[Tensor]:
    x = torch.randn(B, N, H)
    last = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    copies = x.transpose(0, 1).contiguous().transpose(0, 1)
    return [x, last, copies, torch.randn(B, 1, H).expand(-1, N, -1)]


@pytest.mark.parametrize("layout", range(4))
def test_values_and_gradients_are_the_same_with_the_batch_last(layout: int) -> None:
    x = of_any_layout()[layout].requires_grad_()
    pull = torch.randn(B, N, H)
    last = batch_last(x)
    assert last.is_contiguous()
    assert torch.equal(last.permute(2, 0, 1), x)
    assert torch.equal(torch.autograd.grad(last.permute(2, 0, 1), x, pull)[0], pull)


def test_the_gradient_of_a_transposed_copy_is_contiguous() -> None:
    x = torch.randn(4, 7, requires_grad=True)
    seen = []
    x.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
    y = Transposed.apply(x)
    y.backward(torch.randn(7, 4))
    assert y.is_contiguous()
    assert seen == [True]


def test_rows_that_are_turned_are_the_same_and_so_are_their_gradients() -> None:
    x, pull = torch.randn(4, 7, requires_grad=True), torch.randn(4, 7)
    made = turned(x)
    assert made.t().is_contiguous()
    assert torch.equal(made, x)
    found = torch.autograd.grad(made, x, pull)[0]
    assert found.is_contiguous()
    assert torch.equal(found, pull)


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("layout", range(3))
def test_parts_side_by_side_lie_as_the_first_does(layout: int, dim: int) -> None:
    one, other = of_any_layout()[layout].requires_grad_(), torch.randn(B, N, H, requires_grad=True)
    made = side_by_side((one, other), dim)
    assert torch.equal(made, torch.cat((one, other), dim))
    assert lies_last(made) == lies_last(one)
    pull = torch.randn(made.shape)
    for found, expected in zip(torch.autograd.grad(made, (one, other), pull), pull.chunk(2, dim), strict=True):
        assert torch.equal(found, expected)


def test_transposed_copies_stack() -> None:
    x = torch.randn(3, 4, 7)
    torch.testing.assert_close(torch.func.vmap(Transposed.apply)(x), x.transpose(1, 2))
    gradient = torch.func.vmap(torch.func.grad(lambda one: (Transposed.apply(one) ** 2).sum()))(x)
    torch.testing.assert_close(gradient, 2 * x)


def test_where_the_batch_lies() -> None:
    assert [lies_last(x) for x in of_any_layout()] == [False, True, False, False]
    assert not lies_last(torch.randn(1, N, H)), "one row lies by rows"


@pytest.mark.parametrize("layout", range(4))
def test_the_mean_of_copies_is_the_same_wherever_the_batch_lies(layout: int) -> None:
    x = of_any_layout()[layout].requires_grad_()
    torch.testing.assert_close(mean_of_copies(x), x.mean(1))
    pull = torch.randn(B, H)
    found = torch.autograd.grad(mean_of_copies(x), x, pull)[0]
    torch.testing.assert_close(found, torch.autograd.grad(x.mean(1), x, pull)[0])


@pytest.mark.parametrize("layout", range(4))
def test_units_lie_as_those_they_were_taken_from(layout: int) -> None:
    x = of_any_layout()[layout].requires_grad_()
    places = torch.tensor([2, 0, 2, 1])
    found, expected = units(x, places), x[:, [2, 0, 2, 1]]
    assert torch.equal(found, expected)
    assert lies_last(found) == lies_last(x)
    pull = torch.randn(B, 4, H)
    torch.testing.assert_close(torch.autograd.grad(found, x, pull), torch.autograd.grad(expected, x, pull))


@pytest.mark.parametrize("layout", range(4))
def test_neighbours_are_a_slice_whose_gradient_lies_as_what_it_was_taken_from(layout: int) -> None:
    x = of_any_layout()[layout].requires_grad_()
    found, expected = neighbours(x, 1, 3), x[:, 1:3]
    assert torch.equal(found, expected)
    pull = torch.randn(B, 2, H)
    (gradient,) = torch.autograd.grad(found, x, pull)
    assert torch.equal(gradient, torch.autograd.grad(expected, x, pull)[0])
    assert lies_last(gradient) == lies_last(x)


@pytest.mark.parametrize("last", [True, False])
def test_one_for_each_reader_has_the_sum_of_their_gradients_where_it_lies(last: bool) -> None:
    x = torch.randn(B, H, 1).transpose(1, 2) if not last else torch.randn(1, H, B).permute(2, 0, 1)
    x.requires_grad_()
    found, pull = for_each(x, N), torch.randn(B, N, H)
    assert torch.equal(found, x.expand(-1, N, -1))
    assert is_one(found)
    (gradient,) = torch.autograd.grad(found, x, pull.permute(1, 2, 0).contiguous().permute(2, 0, 1) if last else pull)
    torch.testing.assert_close(gradient, pull.sum(1, keepdim=True))
    assert lies_last(gradient) == last


@pytest.mark.parametrize("last", [True, False])
def test_who_reads_it_as_one_hands_back_a_gradient_that_lies_so(last: bool) -> None:
    x = (torch.randn(1, H, B).permute(2, 0, 1) if last else torch.randn(B, 1, H)).requires_grad_()
    read = one_input(for_each(x, N))
    assert torch.equal(read, x[:, 0])
    (gradient,) = torch.autograd.grad(read.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x)
    assert lies_last(gradient) == last
