"N processes with batches of `bs` rows equal one process with batches of N·`bs`: two gloo processes on the CPU, forked after the imports"
import pytest
from contextlib import nullcontext
from helpers import *
from fastai.distributed import *
from fastssl.training.distributed import *
from fastssl.training.testing import in_processes
import torch.distributed as dist
import fastssl.semi.mixmatch, fastssl.semi.vat
torch.set_num_threads(1)

def data(n, **kw):
    "Digits whose views draw nothing, for `n` processes"
    tfms = dict(batch_tfms=[Normalize.from_stats([.3],[.37])], strong=lambda x: x.flip(-1)*.9, weak=lambda x: x*1.01)
    return mk_dls(**{**dict(bs=20//n, uratio=2, n_steps=3), **tfms, **kw})
def sharp():
    "A network without batch norm that is sure of some rows"
    set_seed(1)
    net = no_bn()
    with torch.no_grad(): net[3].weight.mul_(4)
    return net

class Gradients(Callback):
    "Gradients as the optimizer sees them, extra steps included"
    order = 49
    def __init__(self): self.gs = []
    def before_step(self): self.gs.append(torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().clone() for group in self.opt.param_lists for p in group]))

@contextmanager
def joined(learn):
    with learn.distrib_ctx() if num_distrib()>1 else nullcontext(): yield learn

def run(cbs, epochs=2, model=sharp, dls=None, lr=1e-2, **kw):
    def _run():
        n = max(1, num_distrib())
        d = (dls or data)(n)
        set_seed(1); d.train.rng = random.Random(1)
        learn = ssl_learner(d, model(), cbs=[*L(cbs()), Gradients()], loss_func=CrossEntropyLossFlat(), lr=lr, path=Path(tempfile.mkdtemp()), metrics=accuracy, **kw)
        plain(learn.model)
        with joined(learn): fit(learn, epochs)
        return learn.gradients.gs,dict(learn.recorder.ssl),weights(learn.model),list(learn.recorder.values)
    return _run

def plain(module):
    "Without batch norm and dropout, which do not see the rows of other processes, or draw"
    for name,m in module.named_children():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): setattr(module, name, nn.Identity())
        elif isinstance(m, nn.Dropout) or type(m).__name__=='L2PreservedDropout': m.p = 0.
        else: plain(m)

low = .2
class WithNorms(Consistent):
    "A method of a user that compares a mean over the batch with that of the labels"
    def unsup_loss(self, b): return (all_mean(b.u.strong.softmax(1).mean(0))-all_mean(b.l.weak.softmax(1).mean(0))).abs().sum()+super().unsup_loss(b)
METHODS = dict(
    pseudolabel=lambda: PseudoLabelCallback(low), pimodel=lambda: PiModelCallback(weight=1.), meanteacher=lambda: MeanTeacherCallback(.9, weight=1.),
    selfensemble=lambda: SelfEnsembleCallback(low, balance=1., teacher_decay=.9), uda=lambda: UDACallback(low), uda_tsa=lambda: UDACallback(low, tsa='linear'), mcc=MCCCallback,
    fixmatch=lambda: FixMatchCallback(low), fixmatch_auto=FixMatchCallback, fixmatch_teacher=lambda: FixMatchCallback(low, teacher_decay=.9),
    align_labels=lambda: FixMatchCallback(low, align=DistributionAlignment('labels', .9)), align_predictions=lambda: FixMatchCallback(low, align=DistributionAlignment('predictions', .9)),
    adjust=lambda: FixMatchCallback(low, adjust=LogitAdjustment(decay=.9)), defixmatch=lambda: DeFixMatchCallback(threshold=low),
    flexmatch=lambda: FlexMatchCallback(.6, weight=1.), freematch=lambda: FreeMatchCallback(.9, fairness=1., weight=1.), softmatch=lambda: SoftMatchCallback(decay=.9, weight=1.),
    adamatch=lambda: AdaMatchCallback(.9, decay=.9, weight=1.), dash=lambda: DashCallback(.2, least=.1, gamma=1.01), mixmatch=lambda: MixMatchCallback(weight=1.), vat=VATCallback,
    dst=lambda: DSTCallback(low, max_iters=10), selftuning=lambda: SelfTuningCallback(4, .9, projection_dim=8),
    mutualmeanteaching=lambda: MutualMeanTeachingCallback(pretrain=1, decay=.9, n_instances=2),
    mdd=lambda: MDDCallback(hi=1., max_iters=4), mcd=lambda: MCDCallback(num_k=2), afn=lambda: AFNCallback(entropy=1., weight=1.),
    ema=lambda: [FixMatchCallback(low), EMACallback(.9)], separate=lambda: [SSLStep('separate'), FixMatchCallback(low)], no_grad=lambda: [SSLStep('no_grad'), FixMatchCallback(low)],
    both=lambda: [FlexMatchCallback(low, weight=1.), MCCCallback(weight=.1)], accumulated=lambda: [FixMatchCallback(low), GradientAccumulation(40 if num_distrib()<2 else 20)], clipped=lambda: [FixMatchCallback(low), GradientClip(.1)],
    mutual=lambda: MutualLearningCallback('dist'), sup_strong=SupStrongCallback, supervised=SSLStep, users=WithNorms,
    mixup_off=lambda: SoftTargetCallback(torch.arange(1307)%10, view='weak'))

def mixed(x, y, alpha):
    "Mixing that draws nothing, and mixes the same rows in one process and in two: both weak views of the pool"
    n_u = 2*(len(x)//5)
    other = torch.cat([torch.arange(len(x)-2*n_u), torch.arange(len(x)-n_u, len(x)), torch.arange(len(x)-2*n_u, len(x)-n_u)])
    return torch.lerp(x[other], x, .75),torch.lerp(y[other], y, .75)
@pytest.fixture(autouse=True)
def draws_nothing(monkeypatch):
    monkeypatch.setattr(fastssl.semi.mixmatch, 'mix_rows', mixed)
    monkeypatch.setattr(torch, 'randn_like', lambda x: (x.as_subclass(Tensor)*37).sin()+.5)

def compare(f, bound=1e-5):
    (one,),two = in_processes(f, 1),in_processes(f)
    for other in two:
        assert len(one[0])==len(other[0])>=4
        for a,b in zip(one[0], other[0]): assert (a-b).abs().max()<=bound*max(g.abs().max() for g in one[0])
    return one,two
