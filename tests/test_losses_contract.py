"What every loss promises besides its values: exact gradients, float32 inside, tensor subclasses, compilation"
import os, pytest, torch
from fastai.torch_core import TensorBase
from loss_registry import *

each = pytest.mark.parametrize('name', losses)
def setup(name, dtype=torch.float32, **kwargs):
    case = losses[name]
    return case, case.inputs(**{**dict(N=6, C=4, M=5, dtype=dtype, gen=torch.Generator().manual_seed(0)), **kwargs})
def grads(case, inputs, autocast=False):
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast): loss = case(**inputs)
    return loss.detach(), torch.autograd.grad(loss, [inputs[n] for n in case.grads], allow_unused=True)

@each
def test_gradients_flow_where_they_should(name):
    case,inputs = setup(name)
    case(**inputs).backward()
    for n,x in inputs.items(): assert (x.grad is not None and x.grad.any()) == (n in case.grads), n

@each
def test_gradcheck(name):
    case,inputs = setup(name, torch.float64)
    if not case.gradcheck: pytest.skip('part of it is detached on purpose, so finite differences do not give its gradient')
    # vary only the inputs that receive a gradient: labels that flip have no derivative
    inputs = {n:x.detach().requires_grad_(n in case.grads) if x.is_floating_point() else x for n,x in inputs.items()}
    assert torch.autograd.gradcheck(lambda *a: case(**dict(zip(inputs, a))), tuple(inputs.values()), eps=1e-7, atol=1e-5)

@each
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('scale', [1., 50.])
def test_half_precision_is_computed_in_float32(name, dtype, scale):
    case,inputs = setup(name, dtype, scale=scale)
    loss = case(**inputs)
    exact = case(**{n:x.double() if x.is_floating_point() else x for n,x in inputs.items()})
    assert loss.dtype==torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-2, atol=1e-2)

@each
def test_autocast_changes_nothing(name):
    case,inputs = setup(name)
    loss,gs = grads(case, inputs)
    loss2,gs2 = grads(case, inputs, autocast=True)
    assert loss2.equal(loss) and all(a.equal(b) for a,b in zip(gs, gs2))

@each
def test_tensor_subclasses(name):
    case,inputs = setup(name)
    loss,gs = grads(case, inputs)
    sub = {n:TensorBase(x.detach()).requires_grad_(x.requires_grad) for n,x in inputs.items()}
    loss2,gs2 = grads(case, sub)
    assert loss2.equal(loss) and all(torch.equal(a, b.as_subclass(torch.Tensor)) for a,b in zip(gs, gs2))

@pytest.mark.gpu
@each
def test_cuda_without_waiting(name):
    "The same value as on the CPU, and no synchronization in the forward pass"
    case,inputs = setup(name)
    loss,_ = grads(case, inputs)
    if isinstance(case.f, torch.nn.Module): case.f.cuda()
    try:
        inputs = {n:x.detach().cuda().requires_grad_(x.requires_grad) for n,x in inputs.items()}
        torch.cuda.set_sync_debug_mode('error')
        try: on_gpu = case(**inputs)
        finally: torch.cuda.set_sync_debug_mode('default')
        torch.testing.assert_close(on_gpu.cpu().detach(), loss)
    finally:
        if isinstance(case.f, torch.nn.Module): case.f.cpu()

def compiled(name, backend):
    case,inputs = setup(name)
    loss,gs = grads(case, inputs)
    torch._dynamo.reset()
    f = torch.compile(lambda *a: case(**dict(zip(inputs, a))), fullgraph=True, backend=backend)
    loss2 = f(*inputs.values())
    gs2 = torch.autograd.grad(loss2, [inputs[n] for n in case.grads])
    torch.testing.assert_close(loss2.detach(), loss)
    for a,b in zip(gs2, gs): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

@each
def test_compiles_to_one_graph(name): compiled(name, 'aot_eager')

@pytest.mark.skipif(not os.environ.get('FASTSSL_SLOW'), reason='minutes of C++ compilation; set FASTSSL_SLOW=1')
@each
def test_compiles_with_inductor(name): compiled(name, 'inductor')
