"""MolmoE-1B-0924 in plain PyTorch: exact, fast, and steerable block by block."""

from rollout.molmoe.checkpoint import load_model, save_model
from rollout.molmoe.config import MolmoEConfig, VisionConfig
from rollout.molmoe.decoder import MolmoE
from rollout.molmoe.generation import Generation, generate
from rollout.molmoe.preprocess import (
    PREPROCESSORS,
    CoveringPreprocessor,
    ModelInputs,
    Overview,
    Preprocessor,
)

__all__ = [
    "PREPROCESSORS",
    "CoveringPreprocessor",
    "Generation",
    "ModelInputs",
    "MolmoE",
    "MolmoEConfig",
    "Overview",
    "Preprocessor",
    "VisionConfig",
    "generate",
    "load_model",
    "save_model",
]
