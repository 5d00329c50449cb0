"The speedrun of CIFAR-10 runs on the CPU, and its step can be recorded: it asks nothing of the host and makes no tensor on it"
import sys
from pathlib import Path
import numpy as np, pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'benchmarks'))
import speedrun_cifar as speedrun

@pytest.mark.parametrize('start', speedrun.starts)
def test_smoke(start, capsys):
    (acc,seconds), = speedrun.main(['--smoke', '--start', start])
    out = capsys.readouterr().out
    assert acc>60 and 0<seconds<60, out                 # ten colors: chance is 10
    assert ('labels spread' in out)==(start!='none') and ', 24 steps' in out

class Watch(TorchDispatchMode):
    "Ops that wait for the device, and tensors that are not on it"
    waits = 'aten._local_scalar_dense','aten.nonzero','aten.masked_select','aten.lift_fresh','aten._unique2'
    def __init__(self):
        super().__init__()
        self.found = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if str(func).rsplit('.', 1)[0] in self.waits: self.found.append(str(func))
        for t in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(t, torch.Tensor) and t.device.type!='meta': self.found.append(f'{func} on {t.device}')
        return out

def trainer(monkeypatch, **kw):
    o = speedrun.options([f'{k}={v}' for k,v in kw.items()])
    monkeypatch.setattr(speedrun, 'whitening', lambda x: torch.empty(24,3,2,2, device='meta'))
    x = torch.zeros(5000,32,32,3, dtype=torch.uint8, device='meta')
    labels = torch.zeros(250, dtype=torch.long, device='meta')
    t = speedrun.Trainer(x, labels, labels, o, 0)
    t.views.dtype = torch.bfloat16
    t.rows[256] = torch.zeros(256, dtype=torch.long, device='meta')
    return t

@pytest.mark.parametrize('start', speedrun.starts)
def test_step_asks_nothing_of_the_host(monkeypatch, start):
    t = trainer(monkeypatch, start=start, depth=3)
    with Watch() as w: t.step(256)
    assert not w.found, w.found

def test_a_step_that_asks_is_found(monkeypatch):
    t = trainer(monkeypatch)
    weak = t.fast.weak
    t.fast.weak = lambda *args: weak(*args)+torch.tensor(1.)
    with Watch() as w: t.step(256)
    assert w.found
    t.fast.weak = lambda *args: weak(*args)*weak(*args).sum().item()
    with pytest.raises(RuntimeError, match='meta'), Watch(): t.step(256)

def test_splits():
    "As many of each class, none in two parts, and no row of one split's test in its pool"
    x,y = np.empty(0),np.repeat(np.arange(10), 5000)    # the archive is sorted by class
    for split in (100,101,102,200,201,202,203,204):
        labeled,pool,test = speedrun.rows_of(x, y, split)
        assert (np.bincount(y[labeled])==25).all() and (np.bincount(y[test])==500).all()
        assert len(set(pool))==len(pool)==45000 and not set(pool)&set(test) and set(labeled)<=set(pool)

def test_views(monkeypatch):
    "Whole pixels of weak views; a flip; strong views without any change are the image"
    o = speedrun.options(['angle=0', 'color=0', 'hue=0', 'gray=0'])
    torch.manual_seed(0)
    x = torch.randint(0, 256, (6,32,32,3), dtype=torch.uint8)
    v = speedrun.Views(x, o, torch.float32)
    rows = torch.arange(6)
    want = ((x.float()/255-v.mean)/v.std).permute(0,3,1,2)
    assert torch.equal(v.plain(rows), want) and torch.equal(v.plain(rows, 1), want.flip(3))
    moved = torch.nn.functional.pad(want, (0,2,0,2), mode='reflect')[:,:,2:,2:]
    assert torch.equal(v.plain(rows, 0, 2), moved)
    one = torch.ones(())
    monkeypatch.setattr(torch, 'rand', lambda *s, **k: torch.full(s, .5))
    assert torch.allclose(v.strong(rows, one, one*0), want, atol=1e-4)
    cut = v.strong(rows, one, one*8)==0
    assert cut[:,:,14:18,14:18].all() and not cut[:,:,:8].any()

def test_orthogonal():
    g = torch.randn(2,8,30, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(speedrun.orthogonal(g))
    assert (s>.6).all() and (s<1.3).all()

def test_options():
    o = speedrun.options(['batches=64,128', 'lr=.1', 'tta=false', 'start=none'])
    assert (o.batches,o.lr,o.tta,o.start)==((64,128),.1,False,'none')
    with pytest.raises(ValueError, match='no setting'): speedrun.options(['learning_rate=1'])
    with pytest.raises(ValueError, match='start is'): speedrun.options(['start=simclr'])
