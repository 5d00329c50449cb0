"Fixtures that several files use"
import pytest

@pytest.fixture
def fresh_compiler():
    "No code that `torch.compile` made for another test"
    import torch
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
