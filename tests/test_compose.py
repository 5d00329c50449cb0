"The step together with fastai's callbacks and methods gives the numbers of a step written by hand"
import pytest, torch.nn.functional as F
from helpers import *

def by_hand(net, lw, uw, us, sup):
    "Loss and gradients of one step with `Consistent`, on the logits of `net`"
    n = len(lw)
    out = net.train()(torch.cat([lw,uw,us])).split([n, len(uw), len(us)])
    loss = sup(out[0])+consistency(*out[1:])
    return loss.detach(),torch.autograd.grad(loss, list(net.parameters()))

def test_gradient_accumulation_is_the_large_batch():
    learn = fit(mk([Consistent(), GradientAccumulation(30), Spy(), LateSpy()], model=no_bn))
    xs,ys = learn.spy.xs,learn.spy.ys
    assert len(xs)==3 and len(learn.late_spy.gs)==1
    lw,uw,us = (torch.cat(o) for o in zip(*(x.split([10,20,20]) for x in xs)))
    loss,gs = by_hand(learn.spy.start, lw, uw, us, lambda p: F.cross_entropy(p, torch.cat(ys)))
    for a,b in zip(learn.late_spy.gs[0], gs): close(a, b)
    close(torch.stack(learn.spy.losses).mean(), loss)

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixing_acts_on_the_labeled_rows_only(mix):
    class Keep(Callback):
        order = mix.order+1
        def before_batch(self):
            if self.training and 'lam' not in vars(self):
                cb = self.learn._grab_cbs(mix)[0]
                self.lam,self.y1 = cb.lam.clone(),cb.yb1[0].as_subclass(Tensor).clone()
    learn = fit(mk([Consistent(), mix(), Keep(), Spy(), LateSpy()], model=no_bn))
    lam,y1 = learn.keep.lam,learn.keep.y1
    sup = lambda p: torch.lerp(F.cross_entropy(p, y1, reduction='none'), F.cross_entropy(p, learn.spy.ys[0], reduction='none'), lam).mean()
    loss,gs = by_hand(learn.spy.start, *learn.spy.xs[0].split([10,20,20]), sup)
    close(learn.spy.losses[0], loss)
    for a,b in zip(learn.late_spy.gs[0], gs): close(a, b)
    assert isinstance(learn.loss_func, CrossEntropyLossFlat)                # restored

def test_gradient_clip_sees_the_whole_gradient():
    a,b = fit(mk([Consistent(), Spy(), LateSpy()], model=no_bn)),fit(mk([Consistent(), GradientClip(.01), Spy(), LateSpy()], model=no_bn))
    norm = torch.stack([g.norm() for g in a.late_spy.gs[0]]).norm()
    assert norm>.01
    for g,c in zip(a.late_spy.gs[0], b.late_spy.gs[0]): close(g*(.01/(norm+1e-6)), c)

class Precise(SSLCallback):
    "Checks the precision of all it sees"
    views = 'weak','strong'
    def unsup_loss(self, b):
        w = torch.eye(10, device=b.u.weak.device)
        assert b.u.weak.dtype==b.u.strong.dtype==b.pred.dtype==(b.u.weak@w).dtype==torch.float32
        self.dtypes = []
        h = self.model[-1].register_forward_hook(lambda m,i,o: self.dtypes.append(o.dtype))
        assert b.run(self.model, 'u.weak').dtype==torch.float32
        h.remove()
        return consistency(b.u.weak, b.u.strong)

def check_amp(amp, dtype):
    learn,ref = fit(mk([Precise(), amp])),fit(mk([Precise()]))
    assert learn.precise.dtypes==[dtype] and ref.precise.dtypes==[torch.float32]
    for k in ('sup_loss','precise_loss'): close(learn.recorder.ssl[k][0], ref.recorder.ssl[k][0], 2e-2)
def test_losses_are_float32_under_autocast(): check_amp(CPUAmp(), torch.bfloat16)

@pytest.mark.gpu
@pytest.mark.parametrize('mode,dtype', [('fp16', torch.float16), ('bf16', torch.bfloat16)])
def test_mixed_precision(mode, dtype): check_amp(MixedPrecision(mode), dtype)

def test_channels_last():
    a,b = fit(mk(Consistent())),fit(mk([Consistent(), ChannelsLast()]))
    close(weights(a.model), weights(b.model), 1e-4)

@pytest.mark.parametrize('n_steps', [3, 1])
def test_lr_find_leaves_no_trace(n_steps):
    class Counts(Consistent):
        def setup(self): self.seen = torch.zeros(self.n_pool)
        def unsup_loss(self, b): self.seen[b.idx] += 1; return super().unsup_loss(b)
    learn = mk(Counts(), dls=mk_dls(n_steps=n_steps))
    fit(learn)
    seen,pos,w,train = learn.counts.seen.clone(),learn.dls.unlabeled.pos,weights(learn.model),learn.dls.train
    with quiet(learn): learn.lr_find(num_it=12, show_plot=False, stop_div=False)
    assert len(learn.recorder.lrs)==12
    close(learn.counts.seen, seen); close(weights(learn.model), w)
    assert learn.dls.unlabeled.pos==pos and learn.dls.train is train
    fit(learn); assert learn.counts.seen.sum()==seen.sum()*2

def test_fine_tune_and_freeze():
    learn = ssl_learner(mk_dls(size=32), 'resnet10t', cbs=Consistent(), pretrained=False, path=tempfile.mkdtemp())
    params = lambda m: torch.cat([p.detach().flatten() for n,p in m.named_parameters() if p.ndim>1])
    learn.freeze()
    body,head = params(learn.model.body),params(learn.model.head)
    fit(learn)
    close(params(learn.model.body), body, 0); assert not torch.equal(params(learn.model.head), head)
    with quiet(learn): learn.fine_tune(1)
    assert not torch.equal(params(learn.model.body), body)

def test_predictions_and_loaders_are_unchanged():
    dls = mk_dls()
    learn = fit(mk(Consistent(), dls=dls))
    preds,targs = learn.get_preds(ds_idx=0)
    assert targs.bincount().tolist()==[4]*10                                # each of the 40 labeled items once
    assert learn.get_preds()[0].shape==(450,10) and len(learn.validate())==2
    item,label = dls.valid_ds.items[0]
    cls,idx,p = learn.predict(item)
    close(p, learn.get_preds()[0][0], 1e-5)
    assert type(dls.train) is TfmdDL and len(dls.train)==4
    with quiet(learn): assert learn.get_preds(dl=dls.test_dl([item]*3))[0].shape==(3,10)

def test_export_holds_no_data_and_no_teacher(tmp_path):
    class Teach(Consistent):
        def setup(self): self.teacher = EMATeacher(self.model, .9)
        def after_step(self): self.teacher.update()
    learn = fit(mk([Teach(), EMACallback(.9)]), 2)
    seen = [*learn.dls.unlabeled.items[:50], *(o[0] for o in learn.dls.train_ds.items[:10])]
    teacher,raw = learn.teach.teacher.model[0][0].weight.clone(),learn.ema.raw[0].clone()
    for stop in (False, True):
        if stop:
            class Stop(Callback):
                order = 100
                def after_batch(self): raise KeyboardInterrupt()
            with pytest.raises(KeyboardInterrupt): fit(learn, cbs=Stop())
            teacher,raw = learn.teach.teacher.model[0][0].weight.clone(),learn.ema.teacher.model[0][0].weight.clone()
        learn.export(tmp_path/'e.pkl')
        data = (tmp_path/'e.pkl').read_bytes()
        assert learn.model[0][0].weight.detach().numpy().tobytes() in data  # the search does find weights that are in the file
        for x in seen: assert np.ascontiguousarray(x).tobytes() not in data
        for x in seen: assert (x.astype(np.float32)/255).tobytes() not in data and ((x.astype(np.float32)/255-.3)/.37).astype(np.float32).tobytes() not in data
        for t in (teacher, raw): assert t.detach().numpy().tobytes() not in data
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            loaded = load_learner(tmp_path/'e.pkl')
        close(loaded.predict(seen[0])[2], learn.predict(seen[0])[2], 1e-6)

def test_everything_at_once(tmp_path):
    learn = mk([SSLStep('joint'), Consistent(.5), Entropy(), SupStrongCallback(.1), EMACallback(.9), MixUp(), GradientAccumulation(20), GradientClip(), SaveModelCallback(), EarlyStoppingCallback(patience=9), CSVLogger(tmp_path/'log.csv')])
    n = []
    learn.model[0].register_forward_hook(lambda m,i,o: n.append(len(o)) if m.training else None)
    fit(learn, 4)
    assert n==[60]*12                                                       # three methods, one forward pass per step
    ssl = learn.recorder.ssl
    assert {k:len(v) for k,v in ssl.items()}==dict(sup_loss=12, consistent_loss=12, entropy_loss=12, sup_strong_loss=12)
    log = pd.read_csv(tmp_path/'log.csv')
    assert len(log)==4 and log['train_loss'].notna().all()
    total = np.array(ssl['sup_loss'])+.5*np.array(ssl['consistent_loss'])+np.array(ssl['entropy_loss'])+.1*np.array(ssl['sup_strong_loss'])
    smooth = L(learn.recorder.losses).map(float)
    beta,val = .98,0.
    for i,l in enumerate(total): val = beta*val+(1-beta)*l
    close(smooth[-1], val/(1-beta**len(total)), 1e-4)                       # the Recorder shows the total
