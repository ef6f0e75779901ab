"""The paper's experiments, https://arxiv.org/abs/2502.02132."""
