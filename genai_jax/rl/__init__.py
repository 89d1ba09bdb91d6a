"""Reinforcement learning of language models: rollouts, rewards, advantages, control of the KL."""
