"""Chains against the product of probabilities in double precision."""

import torch

from multigate.chain import fold, logit_and


def test_logit_and_is_the_logit_of_the_product_with_its_gradient() -> None:
    grid = torch.linspace(-30, 30, 41, dtype=torch.float64)
    a, b = (one.flatten() for one in torch.meshgrid(grid, grid, indexing="ij"))
    # log p + log q, and log(1 - p q) = log((1 - p) + p (1 - q)), all in logs
    log_product = torch.nn.functional.logsigmoid(a) + torch.nn.functional.logsigmoid(b)
    log_rest = torch.logaddexp(
        torch.nn.functional.logsigmoid(-a),
        torch.nn.functional.logsigmoid(a) + torch.nn.functional.logsigmoid(-b),
    )
    single = [one.float().requires_grad_() for one in (a, b)]
    out = logit_and(*single)
    torch.testing.assert_close(out.double(), log_product - log_rest, atol=1e-5, rtol=1e-6)
    out.sum().backward()
    p, q = torch.sigmoid(a), torch.sigmoid(b)
    expected = (1 - p) / (1 - p * q)
    reliable = (1 - p * q) > 1e-6
    torch.testing.assert_close(single[0].grad.double()[reliable], expected[reliable], atol=1e-5, rtol=1e-4)


def test_extreme_logits_stay_finite_with_finite_gradients() -> None:
    a = torch.tensor([-300.0, -300.0, 300.0, 300.0, 0.0], requires_grad=True)
    b = torch.tensor([-300.0, 300.0, -300.0, 300.0, 300.0])
    out = logit_and(a, b)
    out.sum().backward()
    torch.testing.assert_close(
        out.detach(), torch.tensor([-600.0, -300.0, -300.0, 300.0 - 0.6931, 0.0]), atol=1e-3, rtol=1e-5
    )
    assert a.grad.isfinite().all()


def test_chains_of_any_length_fold_parents_first() -> None:
    conditionals = torch.randn(6, 4)
    # column 2 is the root, 0 follows it, 3 follows 0; 1 stands alone
    out = fold(conditionals, parents=[2, None, None, 0], order=[2, 0, 1, 3])
    p = torch.sigmoid(conditionals)
    torch.testing.assert_close(torch.sigmoid(out[:, 2]), p[:, 2])
    torch.testing.assert_close(torch.sigmoid(out[:, 0]), p[:, 2] * p[:, 0])
    torch.testing.assert_close(torch.sigmoid(out[:, 3]), p[:, 2] * p[:, 0] * p[:, 3])
    torch.testing.assert_close(out[:, 1], conditionals[:, 1])


def test_chains_are_float32_under_autocast() -> None:
    conditionals = torch.randn(3, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fold(conditionals, parents=[None, 0], order=[0, 1])
    assert out.dtype == torch.float32
