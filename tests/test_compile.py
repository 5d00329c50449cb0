"`torch.compile(model)` works with every method, and what is saved has the plain keys"
import pytest, torch
from helpers import *
from test_methods import METHODS, learner
from fastssl.training.graph import GraphStep

pytestmark = pytest.mark.usefixtures('fresh_compiler')

calls = []
def backend(gm, inputs):
    "Counts the calls of compiled code"
    def run(*args):
        calls.append(1)
        return gm.forward(*args)
    return run

def check(learn, compile):
    "A fit trains through the compiled network, and gives the weights of a fit without"
    plain_keys = list(unwrap(learn.model).state_dict())
    start = weights(unwrap(learn.model)).clone()
    learn.model = compile(learn.model)
    calls.clear()
    fit(learn)
    assert calls and not torch.equal(weights(learn.model), start) and weights(learn.model).isfinite().all()
    learn.save('m')
    saved = torch.load(learn.path/'models'/'m.pth', weights_only=False)
    assert list(saved.get('model', saved))==plain_keys
    return learn

@pytest.mark.parametrize('name', METHODS)
def test_a_compiled_model(name):
    compiled = check(learner(METHODS[name]()), partial(torch.compile, backend=backend))
    set_seed(0)
    plain = fit(learner(METHODS[name]()))
    if name not in ('mixmatch','vat'): close(weights(compiled.model), weights(plain.model), 1e-3)     # these draw random numbers within the step
    again = learner(METHODS[name]())
    again.path = compiled.path
    again.load('m')
    close(weights(again.model), weights(compiled.model))

def test_compiled_before_the_learner():
    "As a network of a plain learner, as architecture, as both networks, and inside a larger model"
    def net(): return torch.compile(tiny_cnn(nf=4), backend=backend)
    for learn in (mk([FixMatchCallback(.1)], net), *(ssl_learner(mk_dls(), net(), cbs=cb) for cb in (FixMatchCallback(.1), MDDCallback(), MutualLearningCallback()))):
        calls.clear()
        fit(learn)
        assert calls and not [k for k in learn.model.state_dict() if '_orig_mod' in k]
    larger = nn.Sequential(torch.compile(nn.Flatten(), backend=backend), torch.compile(nn.Linear(64,10), backend=backend))
    learn = check(mk([FixMatchCallback(.1)], lambda: larger), noop)
    assert list(learn.model.state_dict())==['1.weight','1.bias']

def test_export_of_a_compiled_model():
    learn = check(learner([FixMatchCallback(.1), EMACallback(.9)]), partial(torch.compile, backend=backend))
    with quiet(learn): want = learn.get_preds()[0]
    learn.export('e.pkl')
    for loaded in (load_learner(learn.path/'e.pkl'), load_learner(learn.export_plain('p.pkl'))):
        with quiet(loaded): close(loaded.get_preds(dl=learn.dls.valid)[0], want, 1e-5)

def test_a_compiled_teacher_and_features():
    "Hooks on inner modules of a compiled network are read anew in each step"
    teacher = tiny_cnn(nf=4)
    def losses(student, teacher):
        set_seed(3)
        learn = mk([DistillCallback(teacher, features={'3':'3'})], lambda: student)
        return fit(learn, 2).recorder.ssl['feature_loss']
    set_seed(5); net = tiny_cnn(nf=4)
    want = losses(deepcopy(net), teacher)
    assert len(set(want))==len(want)
    close(losses(torch.compile(deepcopy(net), backend=backend), teacher), want, 1e-3)
    close(losses(deepcopy(net), torch.compile(deepcopy(teacher), backend=backend)), want, 1e-3)

class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.lin = nn.Linear(n, n)
    def forward(self, x): return x+F.relu(self.lin(x))

def test_a_network_of_blocks_is_compiled_as_one(monkeypatch):
    "Each compiled graph has both blocks, by `to_graph` too: older versions of PyTorch begin anew in each block of a `Sequential`"
    relus = []
    def counting(gm, inputs):
        relus.append(sum('relu' in str(n.target) for n in gm.graph.nodes))
        return gm.forward
    def net(): return nn.Sequential(nn.Flatten(), Block(64), Block(64), nn.Linear(64, 10))
    compiled = partial(torch.compile, backend=counting)
    fit(mk([FixMatchCallback(.1)], lambda: compiled(net())))
    assert relus and set(relus)=={2}
    relus.clear()
    monkeypatch.setattr(torch, 'compile', compiled)
    fit(mk([FixMatchCallback(.1), GraphStep(True, make=None)], net))
    assert relus and set(relus)=={2}
