"A step that is recorded once and replayed is equal to fastai's, for every method that allows it; others are refused by name"
import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from helpers import *
from test_compose import CPUAmp
from test_methods import METHODS, learner
from fastssl.static import step_number
from fastssl.training.graph import CUDARecording, GraphStep
from fastssl.training.recordable import check_recordable

_aten = torch.ops.aten
forbidden = {_aten._local_scalar_dense, _aten.lift_fresh, _aten.nonzero, _aten.masked_select, _aten._unique2, _aten.equal, _aten.is_nonzero}

class Tape(TorchDispatchMode):
    "Records operators on the CPU as a CUDA graph records kernels: a replay runs them on the same memory, and no Python"
    n_warm = 2
    def __init__(self):
        super().__init__()
        self.ops = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func.overloadpacket not in forbidden, f'{func} waits for the device, or copies a constant to it'
        out = func(*args, **kwargs)
        returns_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not returns_view: self.ops.append((func, args, kwargs, out))
        return out
    def warm(self, f): f()
    def record(self, f):
        with self: f()
        self.fresh = True
    def replay(self):
        if self.fresh:                                  # recording has run the step already; a CUDA graph's does not
            self.fresh = False
            return
        with torch.no_grad():
            for func,args,kwargs,out in self.ops:
                again = func(*args, **kwargs)
                if func._schema.is_mutable: continue
                for a,b in zip(tree_leaves(out), tree_leaves(again)):
                    if isinstance(a, Tensor) and a.numel(): a.data.copy_(b)

@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch, request):
    "Skip the check of label values, which a GPU's labels do not get"
    if request.node.get_closest_marker('gpu') is None: monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)

def can(m): return m.recordable and all(getattr(o, 'recordable', False) for o in (*m.parts, getattr(m, 'threshold', None)) if callable(o))
recordable = [n for n,mk in METHODS.items() if can(mk())]
refused = [n for n in METHODS if n not in recordable]

def test_most_methods_can_be_recorded():
    want = 'pseudo_label pi_model mean_teacher self_ensemble uda uda_tsa mcc fixmatch fixmatch_aligned fixmatch_adjusted fixmatch_teacher flexmatch defixmatch freematch softmatch adamatch dash self_distillation'
    assert set(want.split())<=set(recordable), set(want.split())-set(recordable)

def run(name, make=None, cbs=(), n=2, opt_func=Adam, **kw):
    cbs = [c() for c in cbs]
    learn = learner([METHODS[name](), *cbs], mk_dls(n_steps=5), opt_func=opt_func, **kw)
    learn.dls.unlabeled.fake_l.generator = torch.Generator()       # else PyTorch's loader draws between the labeled rows and the views, and only if they are drawn in this order
    if make!='eager': learn.add_cb(GraphStep(make=make))
    set_seed(3)
    with quiet(learn): learn.fit_one_cycle(n, 1e-2)
    return learn

def same(a, b, eps=2e-4):
    assert a.recorder.ssl.keys()==b.recorder.ssl.keys()
    for k,v in a.recorder.ssl.items(): torch.testing.assert_close(torch.tensor(v), torch.tensor(b.recorder.ssl[k]), rtol=eps, atol=eps, equal_nan=True, msg=lambda m: f'{k}: {m}')
    close(torch.stack(a.recorder.losses), torch.stack(b.recorder.losses), eps)
    close(a.recorder.values[-1], b.recorder.values[-1], eps)
    assert a.recorder.lrs==b.recorder.lrs and a.recorder.iters==b.recorder.iters
    close(weights(a.model), weights(b.model), eps)
    assert a.opt.state_dict()['state'][0].keys()==b.opt.state_dict()['state'][0].keys()

@pytest.mark.parametrize('make', [None, Tape])
@pytest.mark.parametrize('name', recordable)
def test_equal_to_eager(name, make):
    want,got = run(name, 'eager'),run(name, make)
    same(want, got)
    assert (weights(want.model)-weights(learner(METHODS[name]()).model)).abs().max()>1e-3

@pytest.mark.parametrize('cbs', [[EMACallback], [partial(EMACallback, .9, warmup=False)], [GradientClip], [partial(GradientClip, .01), EMACallback], [CPUAmp]])
def test_with_callbacks(cbs): same(run('fixmatch', 'eager', cbs), run('fixmatch', Tape, cbs), 2e-3 if cbs==[CPUAmp] else 2e-4)

@pytest.mark.parametrize('opt_func', [SGD, partial(SGD, mom=.9), RMSProp])
def test_with_optimizers(opt_func): same(run('freematch', 'eager', opt_func=opt_func), run('freematch', Tape, opt_func=opt_func))

def test_dash_when_its_warmup_ends_in_a_replay(monkeypatch):
    monkeypatch.setitem(METHODS, 'dash', partial(DashCallback, warmup=.6))
    want,got = run('dash', 'eager'),run('dash', Tape)
    same(want, got)
    assert torch.tensor(got.recorder.ssl['threshold']).isnan().tolist()==[True]*6+[False]*4

@pytest.mark.parametrize('forward', ['joint','no_grad','separate'])
def test_forward(forward): same(run('fixmatch', 'eager', forward=forward), run('fixmatch', Tape, forward=forward))

@pytest.mark.parametrize('name', refused)
def test_others_are_refused_by_name(name):
    learn = learner([cb:=METHODS[name](), GraphStep(make=None)])
    before = weights(learn.model)
    with pytest.raises(ValueError, match=f"to_graph: .*{type(cb).__name__}"): fit(learn)
    assert torch.equal(weights(learn.model), before)

class Inner(Callback):
    def after_pred(self): pass
@pytest.mark.parametrize('cbs,message', [([GradientAccumulation(20)], 'GradientAccumulation acts inside of a step'), ([MixUp()], 'MixUp acts inside of a step'),
    ([Inner()], 'Inner acts inside of a step .after_pred.'), ([MixedPrecision()], 'MixedPrecision in fp16')])
def test_callbacks_are_refused_by_name(cbs, message):
    learn = learner([METHODS['fixmatch'](), *cbs, GraphStep(make=None)])
    before = weights(learn.model)
    with pytest.raises(ValueError, match=message): fit(learn)
    assert torch.equal(weights(learn.model), before)

def test_other_refusals():
    learn = learner([METHODS['fixmatch']()])
    with pytest.raises(ValueError, match='needs data on a CUDA device, but they are on cpu'): learn.to_graph()
    learn = learner([METHODS['mcd']()])
    with pytest.raises(ValueError, match='MCDCallback makes several optimizer steps'): learn.to_graph()          # on any device
    learn = mk(cbs=GraphStep(make=None))
    with pytest.raises(ValueError, match='no step to record'): fit(learn)
    learn = learner([FixMatchCallback(lambda p, b: p[:,0]), GraphStep(make=None)])
    with pytest.raises(ValueError, match='<lambda>, of FixMatchCallback'): fit(learn)
    learn = learner([METHODS['fixmatch'](), GraphStep(make=None)], opt_func=Lamb)
    with pytest.raises(ValueError, match='lamb_step works on one tensor'): fit(learn)

def draws_in_python(x): return x+.1*random.random()
def test_numbers_drawn_in_python_are_refused():
    learn = learner([METHODS['fixmatch'](), GraphStep(make=None)], mk_dls(strong=draws_in_python))
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match='draws random numbers on the CPU'): fit(learn)
    assert all(map(torch.equal, before, learn.model.parameters()))

class Counted(Tape):
    made = 0
    def __init__(self):
        super().__init__()
        Counted.made += 1
def test_one_recording_per_fit():
    "Epochs share a recording; validation with averaged weights does not end it, and a changed model does"
    learn = learner([METHODS['fixmatch'](), EMACallback(.9), GraphStep(make=Counted)], mk_dls(n_steps=5))
    Counted.made = 0
    fit(learn, 3)
    assert Counted.made==1 and 'one_batch' not in vars(learn)
    class Replaces(Callback):
        def after_epoch(self):
            if self.epoch==0: self.model[-1].bias = nn.Parameter(self.model[-1].bias.detach().clone())
    fit(learn, 2, cbs=Replaces())
    assert Counted.made==3
    assert learn.graph_step.recording is None and learn.graph_step.static is None

def test_after_an_interrupt():
    class Interrupts(Callback):
        order = 70
        def after_batch(self):
            if self.training and self.train_iter==4: raise KeyboardInterrupt
    learn = learner([METHODS['fixmatch'](), GraphStep(make=Tape)], mk_dls(n_steps=6))
    with pytest.raises(KeyboardInterrupt): fit(learn, 1, cbs=Interrupts())
    learn.remove_cbs(Interrupts)
    import gc, pickle
    gc.collect()
    assert 'one_batch' not in vars(learn) and not isinstance(learn.recorder.smooth_loss, type(None))
    fit(learn, 2)
    assert weights(learn.model).isfinite().all()
    pickle.dumps(learn.graph_step.__getstate__())
    learn.to_eager()
    fit(learn)
    assert not learn._grab_cbs(GraphStep)

def test_numbers_follow():
    "Weights that are functions of the share of training done, and rates, are those of each step"
    learn = run('fixmatch', Tape)
    want = run('fixmatch', 'eager')
    assert learn.recorder.hps==want.recorder.hps and len(learn.recorder.hps['lr'])==10

@pytest.mark.parametrize('n', [5, 14, 20, 28, 33, 1])
def test_static_randaugment_is_the_same(n):
    "With static shapes the same numbers are drawn, and make the same pixels"
    from fastssl.static import StaticStep
    x = torch.randint(0, 256, (n,3,9,7), dtype=torch.uint8)
    f = BatchRandAugment(2)
    def draw():
        torch.manual_seed(5)
        if n%14==0: return f.augment(x)                 # the eager draw permutes ops of which all are as frequent
        return f.augment(x)
    want = draw()
    with StaticStep('cpu').recording(): got = draw()
    if n%14: assert torch.equal(want, got)
    else: assert got.shape==want.shape and got.dtype==want.dtype

def on_gpu(name, graph, cbs=(), n=2, **kw):
    "Batches of 14 and 28, so that RandAugment draws nothing on the CPU"
    learn = learner([METHODS[name](), *(c() for c in cbs)], mk_dls(bs=14, uratio=2, n_steps=8, device=torch.device('cuda')), opt_func=partial(SGD, mom=.9), **kw)
    if graph: learn.to_graph()
    set_seed(3)
    with quiet(learn): learn.fit_one_cycle(n, 1e-2)
    return learn
def losses_of(learn): return {k:v for k,v in learn.recorder.ssl.items() if k.endswith('loss')}
@pytest.mark.gpu
@pytest.mark.parametrize('name', recordable)
def test_gpu_graph_is_equal_to_eager(name):
    want,got = on_gpu(name, False),on_gpu(name, True)
    for k,v in losses_of(want).items(): close(torch.tensor(losses_of(got)[k]), torch.tensor(v), 5e-3)
    close(weights(got.model), weights(want.model), 5e-3)
    close(torch.stack(got.recorder.losses), torch.stack(want.recorder.losses), 5e-3)
@pytest.mark.gpu
@pytest.mark.parametrize('cbs', [[EMACallback], [partial(MixedPrecision, 'bf16')], [GradientClip], [ChannelsLast, partial(MixedPrecision, 'bf16'), EMACallback]])
def test_gpu_graph_with_callbacks(cbs):
    eps = 5e-3 if cbs[-1] in (EMACallback,GradientClip) and len(cbs)==1 else 5e-2
    want,got = on_gpu('fixmatch', False, cbs),on_gpu('fixmatch', True, cbs)
    for k,v in losses_of(want).items(): close(torch.tensor(losses_of(got)[k]), torch.tensor(v), eps)
@pytest.mark.gpu
def test_gpu_graph_does_not_wait():
    "Between two reads of losses, nothing in a replayed step waits for the device"
    class Strict(Callback):
        order = -100
        def after_batch(self):
            if self.training: torch.cuda.set_sync_debug_mode('error' if 8<=self.iter<30 else 'default')
    learn = learner([METHODS['fixmatch']()], mk_dls(bs=14, uratio=2, n_steps=34, device=torch.device('cuda'))).to_graph()
    try: fit(learn, cbs=Strict())
    finally: torch.cuda.set_sync_debug_mode('default')
@pytest.mark.gpu
def test_gpu_refuses_views_that_draw_on_the_cpu():
    learn = learner([METHODS['fixmatch']()], mk_dls(bs=14, uratio=2, device=torch.device('cuda'), strong=lambda x: x+.1*torch.randn(1).to(x.device))).to_graph()
    with pytest.raises(ValueError, match='draws random numbers on the CPU'): fit(learn)
