"Small reproducible learners on digits, and callbacks that watch them"
import tempfile
from fastai.vision.all import *
from fastai.callback.all import *
from fastssl.all import *
for k in [k for k in globals() if k.startswith('test')]: del globals()[k]   # fastai's, which pytest would collect

def mk_dls(seed=0, **kw):
    set_seed(seed)
    return digits_dls(**{**dict(bs=10, uratio=2, n_steps=3, seed=seed), **kw})

def mk(cbs=None, model=partial(tiny_cnn, nf=4), dls=None, **kw):
    "A learner with the same model, data order and random numbers each time"
    dls = dls or mk_dls()
    set_seed(1); dls.train.rng = random.Random(1)
    return Learner(dls, model(), metrics=accuracy, cbs=cbs, path=Path(tempfile.mkdtemp()), **{**dict(lr=1e-2, loss_func=CrossEntropyLossFlat()), **kw})

def fit(learn, n=1, **kw):
    with quiet(learn): learn.fit(n, **kw)
    return learn

def no_bn(): return nn.Sequential(nn.Flatten(), nn.Linear(64,16), nn.ReLU(), nn.Linear(16,10))
def weights(model): return torch.cat([t.detach().flatten().float() for t in (*model.parameters(), *model.buffers())])
def close(a, b, eps=1e-6): torch.testing.assert_close(torch.as_tensor(a).as_subclass(Tensor), torch.as_tensor(b).as_subclass(Tensor), rtol=eps, atol=eps, check_dtype=False)

class Consistent(SSLCallback):
    "A method with a loss that is never zero"
    views = 'weak','strong'
    def __init__(self, weight=1.): self.weight = weight
    def unsup_loss(self, b): return (b.u.strong.softmax(1)-b.u.weak.softmax(1).detach()).pow(2).sum(1).mean()

class Entropy(SSLCallback):
    def unsup_loss(self, b): return -(b.u.weak.softmax(1)*b.u.weak.log_softmax(1)).sum(1).mean()

def consistency(uw, us): return (us.softmax(1)-uw.softmax(1).detach()).pow(2).sum(1).mean()

class Spy(Callback):
    "Records inputs, labels and losses of every training batch, right after the methods"
    order = SSLCallback.order+.5
    def before_fit(self):
        if in_fit(self.learn): self.start,self.xs,self.ys,self.gs,self.losses = deepcopy(self.model),[],[],[],[]
    def before_batch(self):
        if self.training: self.xs.append(self.xb[0].detach().clone()); self.ys.append(self.y.as_subclass(Tensor).clone())
    def after_loss(self):
        if self.training: self.losses.append(self.loss.detach().clone())
class LateSpy(Callback):
    "Records gradients as the optimizer sees them"
    order = 49
    def before_fit(self): self.gs = []
    def before_step(self): self.gs.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()])
