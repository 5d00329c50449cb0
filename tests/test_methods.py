"What every method must satisfy: a gradient, resuming, other callbacks, odd data, no wait for the device"
import pytest, torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from helpers import *
from test_compose import CPUAmp

def test_every_registered_method_is_here():
    "Every registered method is tested in this file"
    tested = {(m.func if isinstance(m, partial) else type(m()) if not isinstance(m, type) else m) for m in METHODS.values()}
    assert not {name for name,cls in ssl_methods().items() if cls not in tested}

low = .105         # just above 1/10: an untrained network is confident about some rows and not about others
METHODS = dict(
    pseudo_label = partial(PseudoLabelCallback, low), pi_model = partial(PiModelCallback, weight=1.), mean_teacher = partial(MeanTeacherCallback, .9, weight=1.),
    self_ensemble = partial(SelfEnsembleCallback, low, teacher_decay=.9), uda = partial(UDACallback, low), uda_tsa = partial(UDACallback, low, tsa='exp'), mcc = MCCCallback,
    fixmatch = partial(FixMatchCallback, low), fixmatch_aligned = lambda: FixMatchCallback(low, align=DistributionAlignment("labels", .9)), fixmatch_adjusted = lambda: FixMatchCallback(low, adjust=LogitAdjustment(decay=.9)),
    fixmatch_teacher = partial(FixMatchCallback, low, teacher_decay=.9), flexmatch = partial(FlexMatchCallback, low), defixmatch = partial(DeFixMatchCallback, threshold=low),
    freematch = partial(FreeMatchCallback, .9), softmatch = partial(SoftMatchCallback, decay=.9), adamatch = partial(AdaMatchCallback, .9, decay=.9), dash = partial(DashCallback, .05, 1.001),
    mutual = partial(MutualMeanTeachingCallback, pretrain=0, decay=.9),
    mixmatch = partial(MixMatchCallback, weight=1.), vat = VATCallback, dst = partial(DSTCallback, low, max_iters=10), self_tuning = partial(SelfTuningCallback, 4, .9, projection_dim=8),
    mdd = partial(MDDCallback, hi=1., max_iters=4), mcd = partial(MCDCallback, num_k=2), afn = partial(AFNCallback, entropy=1., weight=1.), dann = partial(DANNCallback, max_iters=4), cdan = partial(CDANCallback, max_iters=4),
    self_distillation = SelfDistillationCallback,
)
every = pytest.mark.parametrize('name', METHODS)
replaces_loss = {'uda_tsa','defixmatch','mixmatch','self_tuning','mcd'}
no_threshold = {'self_distillation','mdd','mcd','afn','dann','cdan','mutual','pi_model','mean_teacher','mcc','mixmatch','vat','self_tuning'}

def learner(cb, dls=None, **kw):
    dls = dls or mk_dls()
    set_seed(1); dls.train.rng = random.Random(1)
    return ssl_learner(dls, tiny_cnn(nf=4, n_out=get_c(dls)), cbs=cb, metrics=accuracy, path=Path(tempfile.mkdtemp()), **{**dict(lr=1e-2), **kw})

@every
def test_the_pool_has_a_gradient(name):
    "Weights 1 and 0 give different gradients, and a fit changes the model"
    gs = []
    for w in (1.,0.):
        learn = learner([(cb:=METHODS[name]()), LateSpy()]); cb.weight = w
        before = weights(learn.model); fit(learn); assert not torch.equal(before, weights(learn.model))
        gs.append(torch.cat([g.flatten() for g in learn.late_spy.gs[-1]])); assert gs[-1].isfinite().all()
    assert (gs[0]-gs[1]).abs().max()>1e-7

sharp = dict(METHODS, flexmatch=partial(FlexMatchCallback, .3), freematch=partial(FreeMatchCallback, .98), softmatch=partial(SoftMatchCallback, decay=.98), adamatch=partial(AdaMatchCallback, .98, decay=.98))
@every
def test_resumes_bit_for_bit(name):
    "With its state, a run continues as if it had never stopped; without it, it does not"
    def mk_one(): return learner(sharp[name](), lr=2e-2)
    def method(l): return first(l._grab_cbs(SSLCallback))
    def go_on(l):
        set_seed(9); l.dls.train.rng = random.Random(9)
        return weights(fit(l).model)
    learn = fit(mk_one(), 4)
    net,opt,state,pos = deepcopy(learn.model.state_dict()),deepcopy(learn.opt.state_dict()),method(learn).state_dict(),learn.dls.unlabeled.pos
    want = go_on(learn)
    def resumed(with_state):
        l = mk_one()
        l.model.load_state_dict(net); l.create_opt(); l.opt.load_state_dict(opt); l.dls.unlabeled.pos = pos
        if with_state: method(l).load_state_dict(state)
        return go_on(l)
    assert torch.equal(resumed(True), want)
    if state and name!='dash': assert not torch.equal(resumed(False), want)          # Dash's bound comes from a warm-up that every fit repeats

@every
def test_with_fastai_callbacks(name):
    "Gradient accumulation, bf16, MixUp on the labeled rows and averaged weights work, or raise a clear error"
    for cbs in ([GradientAccumulation(20)], [CPUAmp()], [MixUp()], [EMACallback(.9)]):
        learn = learner([METHODS[name](), *cbs])
        if name in replaces_loss and isinstance(cbs[0], MixUp):
            with pytest.raises(ValueError, match='MixUp mixes labels'): fit(learn)
        elif name=='mcd' and isinstance(cbs[0], GradientAccumulation):
            with pytest.raises(ValueError, match='several optimizer steps'): fit(learn)
        else: assert weights(fit(learn).model).isfinite().all()

def twice(pred, y, reduction='mean'): return 2*F.cross_entropy(pred, y, reduction=reduction)
@every
def test_the_loss_of_the_learner_is_used(name):
    "Class weights and smoothing, a focal loss or a function change the supervised loss of every method, also of those that replace it"
    def sup(loss_func): return fit(learner(METHODS[name](), loss_func=loss_func, lr=0.)).recorder.ssl['sup_loss'][0]
    w = torch.tensor([5.,1.,1.,.1,.1]*2)
    plain = sup(CrossEntropyLossFlat())
    values = [sup(f) for f in (nn.CrossEntropyLoss(weight=w, label_smoothing=.5), FocalLossFlat(), twice)]
    assert all(math.isfinite(v) and abs(v-plain)>1e-5 for v in values), (plain, values)
    if name!='mcd': close(values[-1], 2*plain, 1e-4)           # MCD adds a class-balance term

@every
def test_odd_data(name):
    "Three classes, three channels, a pool smaller than a batch, incomplete batches"
    X,y = digits_data()
    X,y = np.stack([X]*3, -1)[y<3][:60],y[y<3][:60]
    known = np.where(np.arange(60)<11, y, -1); known[25:] = -1
    dls = SSLDataLoaders.from_arrays(X, known, valid=(X[:20],y[:20]), bs=7, uratio=9, n_steps=3, labels=y[known<0], batch_tfms=[Normalize.from_stats([.3]*3,[.37]*3)], vocab=[0,1,2])
    assert dls.unlabeled.n<dls.unlabeled.bs
    set_seed(1)
    learn = ssl_learner(dls, tiny_cnn(3, 3, nf=4), cbs=(cb:=METHODS[name]()), lr=1e-2, metrics=accuracy)
    fit(learn, 2)
    assert weights(learn.model).isfinite().all() and learn.get_preds()[0].shape==(20,3)

@pytest.mark.parametrize('name', [n for n in METHODS if n not in no_threshold])
def test_no_row_is_confident(name):
    "If no row passes the threshold, the gradient is that of the other terms; if none of a class does, it is finite"
    def grads(weight, compare):
        cb = METHODS[name](); cb.weight = weight
        keep,cb.keep = cb.keep,lambda p, b=None: keep(p, b)*0
        if not compare: cb.compare = lambda y, p: 0.*y.sum(1)
        learn = fit(learner([cb, LateSpy()]))
        assert max(learn.recorder.ssl['kept'])==0
        return torch.cat([g.flatten() for g in learn.late_spy.gs[-1]])
    a,b = grads(1., True),grads(1., False)
    assert a.isfinite().all() and torch.equal(a, b)
    cb = METHODS[name](); keep = cb.keep
    cb.keep = lambda p, b=None: keep(p, b)*(p.argmax(1)!=3)
    assert weights(fit(learner(cb)).model).isfinite().all()

_aten = torch.ops.aten
waits = {_aten._local_scalar_dense, _aten.lift_fresh, _aten.nonzero, _aten.bincount, _aten.masked_select, _aten._unique2, _aten.unique_dim, _aten.repeat_interleave}
class Ops(TorchDispatchMode):
    "Counts operator calls, and records those that fetch a value from the device or copy a constant to it"
    def __init__(self): super().__init__(); self.n,self.bad = 0,[]
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_) and any(i is not None and i.dtype in (torch.bool,torch.uint8) for i in args[1])
        if by_mask or func.overloadpacket in waits: self.bad.append(func)
        return func(*args, **(kwargs or {}))

@every
def test_no_wait_and_no_loop_over_rows(name, monkeypatch):
    "A step makes as many operator calls for 60 pool rows as for 20, and none that waits for a device"
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)        # skips the check of label values, as on a GPU
    def count(uratio):
        cb,ops = METHODS[name](),[]
        def counted(f):
            def _f(b):
                for v in ('weak2','strong','strong2'): b.x.u[v]; b.x.l[v]     # views are computed by the data, not by the method
                with Ops() as o: out = f(b)
                ops.append(o); return out
            return _f
        learn = learner(cb, mk_dls(uratio=uratio))
        for k in ('before_forward','unsup_loss','sup_loss','annealed','both_views','discrepancy'):
            if getattr(type(cb), k, None) is not None and not isinstance(getattr(type(cb), k), property): setattr(cb, k, counted(getattr(cb, k)))
        fit(learn)
        assert not [o.bad for o in ops if o.bad], ops
        return [o.n for o in ops]
    a,b = count(2),count(6)
    assert a==b and 0<max(a)<900

@every
@pytest.mark.gpu
def test_no_wait_on_a_gpu(name):
    cb = METHODS[name]()
    def strict(f):
        def _f(b):
            for v in ('weak2','strong','strong2'): b.x.u[v]; b.x.l[v]
            torch.cuda.set_sync_debug_mode('error')
            try: return f(b)
            finally: torch.cuda.set_sync_debug_mode('default')
        return _f
    learn = learner(cb, mk_dls(device=torch.device('cuda')))
    for k in ('before_forward','unsup_loss'):
        if getattr(cb, k) is not None: setattr(cb, k, strict(getattr(cb, k)))
    fit(learn)
    assert weights(learn.model).isfinite().all()

@every
@pytest.mark.gpu
@pytest.mark.parametrize('mode', ['fp16','bf16'])
def test_mixed_precision_on_a_gpu(name, mode):
    learn = fit(learner([METHODS[name](), MixedPrecision(mode)], mk_dls(device=torch.device('cuda'))))
    assert weights(learn.model).isfinite().all()

def _after_fit(name, n_pool, **kw):
    "A learner after a fit with a pool of `n_pool` digits in memory"
    X,y = digits_data()
    known = np.where(np.arange(len(y))<40, y, -1)[:40+n_pool]
    dls = SSLDataLoaders.from_arrays(X[:40+n_pool], known, valid=(X[-50:],y[-50:]), bs=10, uratio=2, n_steps=3, batch_tfms=[Normalize.from_stats([.3],[.37])], vocab=list(range(10)), **kw)
    return fit(learner(METHODS[name](), dls)),X

@every
def test_an_export_holds_no_data(name):
    "Neither the pool nor a training image is in an exported, pickled or saved learner, and no file grows with the pool"
    sizes = []
    for n_pool in (100,1000):
        learn,X = _after_fit(name, n_pool)
        learn.export('export.pkl')
        learn.save('saved', with_opt=True)
        cb = first(learn._grab_cbs(SSLCallback))
        cb.learn = None
        files = [(learn.path/'export.pkl').read_bytes(), (learn.path/'models'/'saved.pth').read_bytes(), pickle.dumps(cb)]
        for data in files:
            for im in (X[3], X[50], X[120]): assert im.tobytes() not in data and (im/255).astype(np.float32).tobytes() not in data
        sizes.append([len(data) for data in files])
        assert load_learner(learn.path/'export.pkl').model is not None
    small,large = np.array(sizes)
    assert (np.abs(large-small)<2000).all(), sizes
