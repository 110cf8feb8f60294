"""Heads on a backbone: the projection heads of contrastive pretraining, built from lightly's layers."""

from lightly.models.modules.heads import MoCoProjectionHead, ProjectionHead, SimCLRProjectionHead


def simclr_head(input_dim: int, hidden_dim: int, output_dim: int) -> ProjectionHead:
    """SimCLR's projection head: (B,input_dim) -> (B,output_dim), not normalised.

    Linear, batch-norm, ReLU, linear, batch-norm. The paper gives z = W2 ReLU(W1 h) (arXiv 2002.05709, section 2.1); the
    batch-norm after each linear layer is that of the authors' code (google-research/simclr 244e712, model_util.py),
    where the last one learns no offset; lightly's does.
    """
    _check(hidden_dim, output_dim)
    return SimCLRProjectionHead(input_dim, hidden_dim, output_dim)


def moco_head(input_dim: int, hidden_dim: int, output_dim: int) -> ProjectionHead:
    """MoCo v2's projection head: (B,input_dim) -> (B,output_dim), not normalised.

    Linear, ReLU, linear, without batch-norm (arXiv 2003.04297, section 2: "a 2-layer MLP head, hidden layer 2048-d,
    with ReLU").
    """
    _check(hidden_dim, output_dim)
    return MoCoProjectionHead(input_dim, hidden_dim, output_dim, batch_norm=False)


def _check(hidden_dim: int, output_dim: int) -> None:
    for name, width in (("hidden_dim", hidden_dim), ("projection_dim", output_dim)):
        if width < 1:
            raise ValueError(f"Expected model.{name} >= 1, got {width}. Correct the config.")
