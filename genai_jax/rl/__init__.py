"""Reinforcement learning from rewards: rollouts, what they earn, and what to learn from them."""
