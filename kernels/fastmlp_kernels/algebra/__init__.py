"""The algebra: every activation, loss, optimizer and initialiser as plain Python scalars.

Imports math and NumPy only. Compiled by `fastmlp_kernels.compile` for each target, and called
uncompiled by `fastmlp_kernels.reference`.
"""

from fastmlp_kernels.algebra.activations import ACTIVATIONS, Activation
from fastmlp_kernels.algebra.initializers import INITIALIZERS, Initializer
from fastmlp_kernels.algebra.loss_row import Loss
from fastmlp_kernels.algebra.losses import (
    LOSSES,
    LossRule,
    loss_rule,
    loss_rules,
    rule_name,
    rules_of,
)
from fastmlp_kernels.algebra.optimizers import HYPER_WIDTH, OPTIMIZERS, OptimizerRule, hyper_table

__all__ = [
    "ACTIVATIONS",
    "HYPER_WIDTH",
    "INITIALIZERS",
    "LOSSES",
    "OPTIMIZERS",
    "Activation",
    "Initializer",
    "Loss",
    "LossRule",
    "OptimizerRule",
    "hyper_table",
    "loss_rule",
    "loss_rules",
    "rule_name",
    "rules_of",
]
