"""One file per optimizer that torch does not have: each a `torch.optim.Optimizer` for the adapter's one vector.

Every tensor of their state lies in `optimizer.state`, so that a checkpoint carries it; a file's `OPTIMIZER` is the
class. Those of Sophia's kind take curvature, and tell `unclipped_share` after a step.
"""

from unlearn_core.settings.discovery import plugins

OPTIMIZERS = plugins("optimizers")
