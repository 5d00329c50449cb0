"Fixtures that several files use"
import pytest

def pytest_configure(config): config.addinivalue_line('markers', 'gpu: needs a GPU, and runs on it; all other tests run on the CPU')

@pytest.fixture(autouse=True)
def device(request):
    "fastai's default device, which data and `Normalize` are made on: the GPU in tests that are marked `gpu`, else the CPU"
    import torch
    from fastai.torch_core import default_device, defaults
    on_gpu = request.node.get_closest_marker('gpu') is not None
    if on_gpu and not torch.cuda.is_available(): pytest.skip('needs a GPU')
    before = defaults.use_cuda
    default_device(on_gpu)
    yield
    defaults.use_cuda = before

@pytest.fixture
def fresh_compiler():
    "No code that `torch.compile` made for another test"
    import torch
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
