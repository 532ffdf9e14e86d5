"""Random models small enough for tests."""

import torch

from rollout.molmoe import MolmoE, MolmoEConfig, VisionConfig

TINY = MolmoEConfig(
    d_model=32,
    n_layers=4,
    n_heads=4,
    embedding_size=64,
    additional_vocab_size=4,
    num_experts=8,
    top_k=4,
    expert_hidden=16,
    max_position_embeddings=256,
    eos_token_id=0,
    vit_layers=(-1, -3),
    overlap_margins=(2, 2),
    vision=VisionConfig(num_layers=3, dim=16, num_heads=2, mlp_dim=32, patch_size=4, image_size=32),
)


def random_model(config: MolmoEConfig = TINY, *, seed: int = 0) -> MolmoE:
    """A model whose weights are large enough for answers to depend on everything."""
    model = MolmoE(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if is_gain else noise * parameter.shape[-1] ** -0.5)
    return model
