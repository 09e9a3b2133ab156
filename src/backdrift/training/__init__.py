"""One training loop for clean, poisoned and repair training."""

from backdrift.training.config import TrainingConfig, draw, learning_rate_at
from backdrift.training.loop import Batch, Watch, train
from backdrift.training.state import Hook

__all__ = ["Batch", "Hook", "TrainingConfig", "Watch", "draw", "learning_rate_at", "train"]
