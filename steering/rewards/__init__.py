"""Rewards: plain callables from a list of samples (images, tensors, SMILES, tokens) to one number a sample."""

from .calls import Reward, RewardCalls, RewardError, WrongLength, reward_name
from .combine import WeightedSum
from .images import Brightness, ClassLogProb, JpegSize, Sharpness
from .molecules import QED, LogP, SyntheticAccessibility
from .registry import available_rewards, load_reward
from .text_image import ClipScore
from .wrappers import CachedReward, ExecutedReward, cached, content_key, through

__all__ = [
    "Reward",
    "RewardCalls",
    "RewardError",
    "WrongLength",
    "reward_name",
    "JpegSize",
    "Brightness",
    "Sharpness",
    "ClassLogProb",
    "ClipScore",
    "QED",
    "LogP",
    "SyntheticAccessibility",
    "WeightedSum",
    "through",
    "cached",
    "ExecutedReward",
    "CachedReward",
    "content_key",
    "load_reward",
    "available_rewards",
]
