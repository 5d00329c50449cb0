"`torch.compile(model)` works with every method, and what is saved has the plain keys"
import pytest, torch
from helpers import *
from test_methods import METHODS, learner

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
