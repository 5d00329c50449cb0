"The losses and the forward pass of a step compile to one graph without a break, so they can be captured"
import copy, pytest, torch
import torch.nn.functional as F
from fastssl.losses.semi import *
from fastssl.core import pseudo_label
from fastssl.training.testing import tiny_cnn

pytestmark = pytest.mark.usefixtures('fresh_compiler')

def fixmatch(net, x, y, n, m):
    out = net(x)
    labeled,weak,strong = out.split([n, m, m])
    label,mask,_ = pseudo_label(weak, .3)
    return F.cross_entropy(labeled, y)+(F.cross_entropy(strong, label, reduction='none')*mask).mean()

def first_number(o): return o[0] if isinstance(o, tuple) else o
self_training,l2 = ConfidenceBasedSelfTrainingLoss(.3),L2ConsistencyLoss()     # made outside: `store_attr` reads the caller's frame
losses = dict(
    ConfidenceBasedSelfTrainingLoss=lambda w, s: first_number(self_training(s, w)),
    fixmatch_consistency_loss=lambda w, s: first_number(fixmatch_consistency_loss(w, s, p_cutoff=.3)),
    L2ConsistencyLoss=lambda w, s: l2(s.softmax(1), w.detach().softmax(1)),
)

@pytest.mark.parametrize('name', losses)
def test_a_loss_is_one_graph(name):
    torch.manual_seed(0)
    w,s = torch.randn(12,10),torch.randn(12,10, requires_grad=True)
    f = losses[name]
    got = torch.compile(f, fullgraph=True, backend='aot_eager')(w, s)
    want = f(w, s)
    torch.testing.assert_close(got, want)
    a,b = (torch.autograd.grad(o, s)[0] for o in (got, want))
    torch.testing.assert_close(a, b)
    assert a.abs().max()>0

def test_a_step_is_one_graph():
    torch.manual_seed(0)
    net = tiny_cnn(nf=4)
    x,y = torch.randn(4+8+8,1,8,8),torch.arange(4)
    def loss_and_gradients(f):
        own = copy.deepcopy(net)
        loss = f(own, x, y, 4, 8)
        return loss,*torch.autograd.grad(loss, list(own.parameters()))
    got = loss_and_gradients(torch.compile(fixmatch, fullgraph=True, backend='aot_eager'))
    for a,b in zip(got, loss_and_gradients(fixmatch)): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
