"""The parts against transformers' own, with the same random weights."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, CLIPVisionModel, OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from rollout.molmoe import MolmoEConfig, VisionConfig
from rollout.molmoe.generation import decode_step
from rollout.molmoe.moe import SparseMoE, grouped_experts, looped_experts
from rollout.molmoe.vision import VisionTransformer
from tests.rollout.molmoe.tiny import TINY, random_model

CONFIG = MolmoEConfig(d_model=64, n_heads=4, num_experts=16, top_k=8, expert_hidden=32)


def olmoe_twin(ours: SparseMoE, top_k: int) -> OlmoeSparseMoeBlock:
    config = OlmoeConfig(
        hidden_size=64,
        intermediate_size=32,
        num_experts=16,
        num_experts_per_tok=top_k,
        norm_topk_prob=False,
    )
    config._experts_implementation = "eager"
    theirs = OlmoeSparseMoeBlock(config)
    theirs.gate.weight.data = ours.gate.weight.data
    theirs.experts.gate_up_proj.data = ours.gate_up.data
    theirs.experts.down_proj.data = ours.down.data
    return theirs


@pytest.fixture
def moe():
    torch.manual_seed(1)
    layer = SparseMoE(CONFIG).requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return layer


@pytest.mark.parametrize("top_k", range(1, 17))
@pytest.mark.parametrize("experts", [grouped_experts, looped_experts])
@pytest.mark.parametrize("num_tokens", [1, 2, 37])
def test_moe_against_olmoe(moe, top_k, experts, num_tokens, monkeypatch):
    monkeypatch.setattr(moe, "experts_for", lambda *_: experts)
    x = torch.randn(1, num_tokens, 64, generator=torch.Generator().manual_seed(top_k))
    expected = olmoe_twin(moe, top_k)(moe.ff_norm(x))
    assert torch.allclose(moe(x, top_k), expected, atol=1e-5)


@pytest.mark.parametrize("top_k", [0, 17])
def test_moe_refuses_impossible_top_k(moe, top_k):
    with pytest.raises(ValueError, match=r"within 1\.\.16"):
        moe(torch.zeros(1, 1, 64), top_k)


def test_vision_tower_against_clip():
    torch.manual_seed(2)
    vision = VisionConfig(
        num_layers=4, dim=32, num_heads=4, mlp_dim=48, patch_size=4, image_size=24
    )
    clip_config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=24,
        patch_size=4,
        layer_norm_eps=1e-5,
        hidden_act="quick_gelu",
    )
    clip = CLIPVisionModel(clip_config).eval()
    body = getattr(clip, "vision_model", clip)
    ours = VisionTransformer(vision, (-1, -3))
    with torch.no_grad():
        embeddings = body.embeddings
        ours.class_embedding.copy_(embeddings.class_embedding)
        ours.positional_embedding.copy_(embeddings.position_embedding.weight)
        # CLIP's convolution weight is (c, dy, dx); a patch vector here is (dy, dx, c).
        kernel = embeddings.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1)
        ours.patch_embedding.weight.copy_(kernel)
        ours.pre_ln.load_state_dict(body.pre_layrnorm.state_dict())
        for mine, theirs in zip(ours.resblocks, body.encoder.layers, strict=True):
            for name in "qkv":
                source = getattr(theirs.self_attn, f"{name}_proj")
                getattr(mine.attention, f"w{name}").load_state_dict(source.state_dict())
            mine.attention.wo.load_state_dict(theirs.self_attn.out_proj.state_dict())
            mine.feed_forward.w1.load_state_dict(theirs.mlp.fc1.state_dict())
            mine.feed_forward.w2.load_state_dict(theirs.mlp.fc2.state_dict())
            mine.attention_norm.load_state_dict(theirs.layer_norm1.state_dict())
            mine.ffn_norm.load_state_dict(theirs.layer_norm2.state_dict())
        pixels = torch.randn(2, 3, 24, 24)
        states = clip(pixels, output_hidden_states=True).hidden_states
        patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4)
        patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, 36, 48)
        features = ours(patches)
    expected = torch.cat([states[4][:, 1:], states[2][:, 1:]], dim=-1)
    assert torch.allclose(features, expected, atol=1e-5)


class NoHostReads(TorchDispatchMode):
    """Fails on every operation that reads a device value or makes a data-dependent shape."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "item", "unique", "masked_select", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} reads on the host"
        return func(*args, **(kwargs or {}))


def forbid_direct_reads(monkeypatch):
    """These read a CPU tensor without an operation that a dispatch mode could see."""
    for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__"):

        def read(self, *_arguments, name=name):
            raise AssertionError(f"Tensor.{name} reads on the host")

        monkeypatch.setattr(torch.Tensor, name, read)


def prefill_and_decode(model, monkeypatch):
    inputs = torch.tensor([[1, 2, 3, 4, 5, 6]])
    images = torch.randn(1, 2, 64, 48)
    masks = torch.ones(1, 2, 64)
    idx = torch.full((1, 2, 16), -100)
    idx[0, 0, :3] = torch.tensor([1, 2, 3])
    cache = model.new_cache(8)
    with monkeypatch.context() as patch, NoHostReads():
        forbid_direct_reads(patch)
        x = model.embed(inputs, model.encode_image(images, masks), idx)
        x = model.run_blocks(x, 0, 4, cache=cache, top_k=[4, 4, 2, 2], skipped=(1,))
        token = model.logits(x[:, -1]).argmax(-1)
        return decode_step(model, token, cache, top_k=2, skipped=(1,))


def test_accelerator_path_reads_nothing_on_the_host(monkeypatch):
    model = random_model(TINY)
    monkeypatch.setattr(SparseMoE, "experts_for", lambda *_: grouped_experts)
    prefill_and_decode(model, monkeypatch)


def test_the_watch_for_host_reads_catches_the_cpu_loop(monkeypatch):
    with pytest.raises(AssertionError, match="reads on the host"):
        prefill_and_decode(random_model(TINY), monkeypatch)


@pytest.mark.parametrize("ids", [[3, 0, 63, 5], [3, 64, 5], [3, 67, -1]])
def test_ids_that_the_host_knows_are_embedded_as_all_others(ids):
    table, token_ids = random_model(TINY).wte, torch.tensor(ids)
    assert torch.equal(table.embedding_for(token_ids)(token_ids), table(token_ids))


def test_words_are_looked_up_in_one_table():
    table, words = random_model(TINY).wte, torch.tensor([3, 0, 63])
    table.new_embedding = None
    assert table.embedding_for(words)(words).shape == (3, TINY.d_model)
