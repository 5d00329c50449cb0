"N processes with batches of `bs` rows equal one process with batches of N·`bs`: two gloo processes on the CPU, forked after the imports"
import io, pytest, subprocess, sys
from contextlib import redirect_stdout
from contextlib import nullcontext
from helpers import *
from fastai.distributed import *
from fastssl.training.testing import in_processes
import torch.distributed as dist
import fastssl.semi.mixmatch
torch.set_num_threads(1)
n_processes = lambda: max(1, num_distrib())

# ------------------------------------------------------------------ the same run in one process and in two
tfms = dict(batch_tfms=[Normalize.from_stats([.3],[.37])], strong=lambda x: x.flip(-1)*.9, weak=lambda x: x*1.01)      # views that draw nothing
DIGITS = {n:mk_dls(bs=20//n, uratio=2, n_steps=3, **tfms) for n in (1,2)}
def digits(): return DIGITS[n_processes()]
def drawn(*shape):
    "Numbers that do not depend on what was drawn before"
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))
def vectors(y):
    "Vectors with targets `y`, without items"
    set_seed(0)
    ds = list(zip(torch.randn(60,1,8,8), y))
    bs = 20//n_processes()
    dls = DataLoaders(DataLoader(ds[:40], bs=bs, shuffle=True), DataLoader(ds[40:], bs=bs))
    return dls.add_unlabeled(torch.randn(100,1,8,8), uratio=2, n_steps=3, seed=1)
def numbers(): return vectors(drawn(60,1))
def points(): return vectors(drawn(60,3,2)*1.8-.9)

def sharp():
    "A network that is sure of some rows"
    net = no_bn()
    with torch.no_grad(): net[3].weight.mul_(4)
    return net
def deterministic(module):
    "Without batch norm and dropout: they do not see the rows of other processes, or draw"
    for name,m in module.named_children():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): setattr(module, name, nn.Identity())
        elif isinstance(m, nn.Dropout) or type(m).__name__=='L2PreservedDropout': m.p = 0.
        else: deterministic(m)

class Gradients(Callback):
    "Gradients as the optimizer sees them, also in extra steps"
    order = 49
    def __init__(self): self.gs = []
    def before_batch(self):
        mean = self.learn.recorder.smooth_loss
        mean.val = mean.val.to(torch.get_default_dtype())       # fastai starts from a float32 zero
    def before_step(self): self.gs.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for group in self.opt.param_lists for p in group]).cpu())

def together(learn): return learn.distrib_ctx() if num_distrib()>1 else nullcontext()
PATH = Path(tempfile.mkdtemp())
def learner(cbs, model=no_bn, dls=digits, **kw):
    dls = dls()
    set_seed(1); dls.train.rng = random.Random(1); dls.pool.pos = 0
    return ssl_learner(dls, model(), cbs=cbs, path=PATH, **{**dict(lr=1e-2, metrics=accuracy, loss_func=CrossEntropyLossFlat()), **kw})
def maps_learner(cbs):
    dls = points()
    set_seed(1); dls.train.rng = random.Random(1)
    cbs[0].n_classes = 3
    net = MultiHead(nn.Conv2d(1,4,3,padding=1), nn.ReLU(), nn.Conv2d(4,3,1), adv=cbs[0].behind_layer(nn.Conv2d(4,3,1)))
    return Learner(dls, net, loss_func=KeypointLoss(sigma=1.), cbs=cbs, lr=1e-2, path=PATH)
def numbers_net(): return nn.Sequential(nn.Conv2d(1,8,3,padding=1), nn.ReLU())

def trained(make, prepare=deterministic):
    def run():
        cb = Gradients()
        learn = make(cb)
        prepare(learn.model)
        with together(learn): fit(learn, 2)
        return SimpleNamespace(gs=cb.gs, logs=dict(learn.recorder.ssl), weights=weights(learn.model).cpu(), row=list(learn.recorder.values[-1]))
    return run
def in_float64(make):
    "`make` in a process whose numbers are all float64"
    def _make(cb):
        torch.set_default_dtype(torch.float64)
        return make(cb)
    return _make
def equal(one, other, bound=1e-5, weight_bound=1e-4):
    largest = max(g.abs().max() for g in one.gs)
    assert len(one.gs)==len(other.gs) and largest>1e-3
    for a,b in zip(one.gs, other.gs): assert (a-b).abs().max()<=bound*largest
    close(one.weights, other.weights, weight_bound); close(one.row, other.row, 1e-4)
    assert list(one.logs)==list(other.logs)
    for k,v in one.logs.items(): torch.testing.assert_close(tensor(v), tensor(other.logs[k]), rtol=1e-4, atol=1e-5, equal_nan=True)

low = .2
class MeanGap(Consistent):
    "A method of a user: the mean predictions for both sides, over all rows of a step, should agree"
    def unsup_loss(self, b): return (all_mean(b.u.strong.softmax(1).mean(0))-all_mean(b.l.weak.softmax(1).mean(0))).abs().sum()+super().unsup_loss(b)
class Neighbors(SSLCallback):
    "A method of a user that compares each row with all rows"
    def unsup_loss(self, b): return (b.u.weak@all_rows(b.u.weak).T).log_softmax(1).pow(2).mean()
METHODS = dict(
    pseudolabel=lambda: PseudoLabelCallback(low), pimodel=lambda: PiModelCallback(weight=1.), meanteacher=lambda: MeanTeacherCallback(.9, weight=1.),
    selfensemble=lambda: SelfEnsembleCallback(low, balance=1., teacher_decay=.9), uda=lambda: UDACallback(low), mcc=MCCCallback,
    fixmatch=lambda: FixMatchCallback(low), defixmatch=lambda: DeFixMatchCallback(threshold=low), flexmatch=lambda: FlexMatchCallback(.6, weight=1.),
    freematch=lambda: FreeMatchCallback(.9, fairness=1., weight=1.), softmatch=lambda: SoftMatchCallback(decay=.9, weight=1.),
    adamatch=lambda: AdaMatchCallback(.9, decay=.9, weight=1.), dash=lambda: DashCallback(.2, least=.1, gamma=1.2), mixmatch=lambda: MixMatchCallback(weight=1.), vat=VATCallback,
    dst=lambda: DSTCallback(low, max_iters=10), selftuning=lambda: SelfTuningCallback(4, .9, projection_dim=8),
    mutualmeanteaching=lambda: MutualMeanTeachingCallback(pretrain=1, decay=.9, n_instances=2),
    mdd=lambda: MDDCallback(hi=1., max_iters=4), mcd=lambda: MCDCallback(num_k=2), afn=lambda: AFNCallback(entropy=1., weight=1.),
    dann=DANNCallback, cdan=CDANCallback)
VARIANTS = dict(
    supervised=SSLStep, sup_strong=SupStrongCallback, self_distillation=SelfDistillationCallback, uda_tsa=lambda: UDACallback(low, tsa='linear'), fixmatch_auto=FixMatchCallback, fixmatch_teacher=lambda: FixMatchCallback(low, teacher_decay=.9),
    align_labels=lambda: FixMatchCallback(low, align=DistributionAlignment('labels', .9)), adjust=lambda: FixMatchCallback(low, adjust=LogitAdjustment(decay=.9)),
    separate=lambda: [SSLStep('separate'), FixMatchCallback(low)], no_grad=lambda: [SSLStep('no_grad'), FixMatchCallback(low)], both=lambda: [FlexMatchCallback(low, weight=1.), MCCCallback(weight=.1)],
    ema=lambda: [FixMatchCallback(low), EMACallback(.9)], accumulated=lambda: [FixMatchCallback(low), GradientAccumulation(40//n_processes())], clipped=lambda: [FixMatchCallback(low), GradientClip(.1)],
    mutual_dist=lambda: MutualLearningCallback('dist'), targets=lambda: SoftTargetCallback(torch.arange(1307)%10, view='weak'),
    distill=lambda: DistillCallback(sharp(), 'dist', features={'1':'1'}, feature_loss='relation'), of_a_user=MeanGap, of_another=Neighbors)
makers = {k:lambda cb, f=f: learner([*L(f()), cb], sharp) for k,f in {**METHODS, **VARIANTS}.items()}
# In float32 rounding errors grow: in some orders of the pool a hundredfold in MDD's loss, and Adam turns those of a gradient near 0 into steps.
# In float64 the gradients of one process and of two differ by 5e-16 of the largest one, in each of eight orders.
def mdd_regression(cb):
    method = MDDRegressionCallback(hi=1., max_iters=4, bottleneck_dim=8)
    return learner([method, cb], numbers_net, numbers, loss_func=MSELossFlat(), metrics=None, n_out=1)
exact = dict(mddregression=mdd_regression, regda=lambda cb: maps_learner([RegDACallback(.3, hi=1., max_iters=4), cb]))
makers.update({k:in_float64(f) for k,f in exact.items()})

def mixed(x, y, alpha):
    "Mixing that draws nothing and mixes the same rows in one process and in two: both weak views of the pool"
    n = 2*(len(x)//5)
    other = torch.cat([torch.arange(len(x)-2*n), torch.arange(len(x)-n, len(x)), torch.arange(len(x)-2*n, len(x)-n)])
    return torch.lerp(x[other], x, .75),torch.lerp(y[other], y, .75)

@pytest.mark.parametrize('name', makers)
def test_equal_to_one_process(name, monkeypatch):
    "Gradients of six steps, weights, logs and the row of the table"
    monkeypatch.setattr(fastssl.semi.mixmatch, 'mix_rows', mixed)
    monkeypatch.setattr(torch, 'randn_like', lambda x: (x.as_subclass(Tensor)*37).sin()+.5)
    (one,) = in_processes(trained(makers[name]), 1)
    bounds = (1e-13, 1e-6) if name in exact else ()
    for other in in_processes(trained(makers[name])): equal(one, other, *bounds)
def test_every_registered_method_is_here(): assert set(registered_methods)<=set(makers)

# ------------------------------------------------------------------ what else happens in several processes
def gap(t):
    "Largest difference between the processes"
    ts = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(ts, t.contiguous())
    return max(float((t-ts[0]).abs().max()) for t in ts)
class Rows(Callback):
    "Rows of the pool in each step, and their strong views"
    order = SSLCallback.order+.5
    def __init__(self): self.idx,self.x = [],[]
    def after_pred(self):
        if self.training:
            b = self.learn.ssl_step.b
            self.idx.append(b.idx.tolist()); self.x.append(b.x.u.strong.clone())

def test_processes_agree():
    "Weights, batch norms, teachers, averages and methods' state are equal in all processes, also in a second fit; the learner is left as it was"
    def run():
        learn = learner([FixMatchCallback(low, teacher_decay=.9), FlexMatchCallback(.101), EMACallback(.9)], partial(tiny_cnn, nf=4))
        cbs,res = list(learn.cbs),[]
        with together(learn):
            for n in (1,2):
                fit(learn)
                nets = [learn.model, learn.ema.teacher.model, learn.fix_match.teacher_model.model]
                state = learn.flex_match.threshold.status.net_outputs.float()
                res += [gap(weights(net)) for net in nets]+[gap(state)]
                assert learn.ema.teacher.n==3*n and int((state>=0).sum())>20          # the average goes on, rows of both processes are counted
                assert type(learn.model) is nn.Sequential and type(learn.ema.teacher.model) is nn.Sequential
        assert set(map(id, learn.cbs))<=set(map(id, cbs))|{id(getattr(learn, 'progress', None))} and learn.dls.pool.shard==(0,1) and type(learn.dls.train) is TfmdDL
        return res
    for res in in_processes(run): assert max(res)==0

def test_rows_and_random_numbers():
    "The pool is divided by batch, whatever each process drew as its seed; views differ between processes that were seeded alike"
    def run():
        learn = learner([Consistent(), (cb:=Rows())])
        learn.dls.pool.seed = 5+rank_distrib()
        learn.dls.pool.view_tfms = dict(strong=lambda x: torch.randn_like(x))
        learn.dls.train.rng = random.Random(rank_distrib())
        with together(learn): fit(learn, 2)
        return cb.idx,cb.x[0],learn.dls.pool.seed,torch.cat([t.detach().flatten() for t in learn.model.parameters()])
    (a,xa,sa,wa),(b,xb,sb,wb) = in_processes(run)
    pool = DIGITS[2].pool
    old,pool.seed = pool.seed,5
    try: assert [i for rows in zip(a, b) for part in rows for i in part]==pool.stream(0, 6*40)
    finally: pool.seed = old
    assert sa==sb==5 and not torch.equal(xa, xb) and torch.equal(wa, wb)

def test_a_pass_takes_fewer_steps():
    "Without a given number of steps an epoch is one pass over the pool, of all processes together"
    def run():
        dls = vectors(torch.arange(60)%10)
        dls.add_unlabeled(torch.randn(100,1,8,8), uratio=1, seed=1)
        learn = Learner(dls, no_bn(), cbs=[Consistent(), (cb:=Rows())], loss_func=CrossEntropyLossFlat(), path=PATH)
        dls.pool.view_tfms = dict(strong=noop)
        with together(learn): fit(learn)
        return cb.idx
    a,b = in_processes(run)
    assert len(a)==len(b)==5 and sorted(sum(a+b, []))==list(range(100))

@pytest.mark.parametrize('every', [50,2])
def test_nan_in_one_process_stops_all(every):
    class Bad(FixMatchCallback):
        name,n = 'bad_method',0
        def unsup_loss(self, b):
            self.n += 1
            return super().unsup_loss(b)*(math.nan if self.n==2 and rank_distrib() else 1)
    def run():
        learn = learner([Bad(low), StopOnNaN(every)])
        before = weights(learn.model)
        with together(learn), pytest.raises(FloatingPointError, match='the loss of Bad is nan in step 1 of epoch 0'): fit(learn, 2)
        assert torch.equal(weights(learn.model), before)
    in_processes(run)

def test_predictions_in_order():
    "`predict_pool`, `pseudo_labels`, `get_preds`, `validate`, reports: as in one process; before and after the context each process may predict alone"
    def alone():
        learn = learner(FixMatchCallback(low))
        with quiet(learn): return predict_pool(learn),learn.get_preds()[0],list(learn.validate()),learn.baselines().accuracy.tolist()
    def run():
        learn = learner(FixMatchCallback(low))
        with quiet(learn): before = predict_pool(learn),learn.baselines().accuracy.tolist()        # no process group yet
        with together(learn), quiet(learn):
            res = predict_pool(learn),learn.get_preds()[0],list(learn.validate()),learn.baselines().accuracy.tolist()
            close(learn.get_preds(dl=learn.dls.pool_dl())[0], res[0])
            close(predict_pool(learn, rows=[5]), res[0][[5]])
            close(before[0], res[0]); close(before[1], res[3])
            assert len(learn.pseudo_labels())==1307
        if not rank_distrib(): close(predict_pool(learn), res[0])
        return res
    (want,) = in_processes(alone, 1)
    for got in in_processes(run):
        for a,b in zip(want, got): close(a, b, 1e-5)

def test_a_plain_learner_predicts_the_pool():
    def run():
        learn = Learner(digits(), no_bn(), loss_func=CrossEntropyLossFlat(), path=PATH)
        with torch.no_grad(): want = learn.model(torch.cat([b[0] for b in learn.dls.pool_dl()])).softmax(1)
        with learn.distrib_ctx(sync_bn=False): close(predict_pool(learn), want)
    in_processes(run)

def test_files_are_written_by_the_first():
    path = Path(tempfile.mkdtemp())
    def run():
        learn = learner([FixMatchCallback(low), SaveModelCallback(), CSVLogger()])
        learn.path = path
        with together(learn), redirect_stdout(io.StringIO()):
            fit(learn, 2); learn.export_plain('plain.pkl'); learn.remove_cb(CSVLogger); learn.export('all.pkl')
    in_processes(run)
    assert sorted(p.name for p in path.rglob('*.*'))==['all.pkl','history.csv','model.pth','plain.pkl'] and len((path/'history.csv').read_text().splitlines())==3
    assert (path/'all.pkl').stat().st_size<2e5                                       # without the data

def test_lr_find_and_self_train():
    def run():
        learn = learner(FixMatchCallback(low))
        with together(learn), quiet(learn):
            before = weights(learn.model)
            lr = learn.lr_find(num_it=10, show_plot=False).valley
            assert torch.equal(weights(learn.model), before)
            fit(learn, 1, lr=lr)
            rounds = learn.self_train(rounds=1, n_epoch=1)
        return lr,rounds.pseudo_acc.tolist()[1:],gap(weights(learn.model))
    a,b = in_processes(run)
    assert a==b and a[2]==0

def test_lr_find_has_no_time_limit_of_its_own_in_each_process():
    def run():
        learn = learner(FixMatchCallback(low))
        learn.pool_report.lr_find_seconds = 0 if rank_distrib() else 60                  # one clock would stop at once, and the other process wait
        with together(learn), quiet(learn), redirect_stdout(io.StringIO()) as out: learn.lr_find(num_it=5, show_plot=False)
        return len(learn.recorder.losses),out.getvalue().count('PoolReport: lr_find:')
    assert in_processes(run)==[(6,1),(6,0)]

def test_report_on_the_target():
    def run():
        learn = learner([FixMatchCallback(low), TargetReport()])
        with together(learn): fit(learn, 2)
        return list(learn.recorder.values[-1])
    a,b = in_processes(run)
    close(a, b, 1e-6)

def test_a_fit_without_methods_after_one_with():
    def run():
        learn = learner(FixMatchCallback(low))
        with together(learn):
            fit(learn); learn.remove_cb(FixMatchCallback); fit(learn)
        return gap(weights(learn.model))
    assert in_processes(run)==[0,0]

def test_mistakes_are_named():
    def without_context(): fit(learner(FixMatchCallback(low)))
    def other_data():
        learn = Learner(mk_dls(seed=rank_distrib()), no_bn(), cbs=FixMatchCallback(low), loss_func=CrossEntropyLossFlat())
        with together(learn): fit(learn)
    for f,message in ((without_context, r'one of 2 processes.*with learn.distrib_ctx'), (other_data, 'the training set of process . is not that of process 0')):
        with pytest.raises(RuntimeError, match='(?s)'+message): in_processes(f)

def test_torchrun_without_a_gpu():
    "accelerate connects processes on a CPU only if it is told to"
    def run():
        os.environ.pop('ACCELERATE_USE_CPU')
        learn = learner(FixMatchCallback(low))
        with together(learn): fit(learn)
        return gap(weights(learn.model)),dist.get_world_size()
    assert in_processes(run)==[(0,2)]*2

def test_data_parallel():
    "`to_parallel` wraps the model anew in each fit: the average goes on"
    learn = learner([FixMatchCallback(low, teacher_decay=.9), EMACallback(.9)]).to_parallel()
    for n in (1,2):
        fit(learn)
        assert learn.ema.teacher.n==3*n and learn.ema.teacher.student is learn.model and isinstance(learn.model, nn.Sequential)

def test_distilled_with_soft_targets_that_compare_rows():
    "`DistillLoss('dist')`, the learner's own loss"
    set_seed(0)
    soft = torch.randn(40,10)
    def make(cb):
        learn = learner([SSLStep(), cb], sharp)
        loss,labels = DistillLoss('dist'),learn.dls.pool.labeled_rows[-1]
        def with_soft(pred, y):
            if not learn.training: return F.cross_entropy(pred, y)
            return loss._loss(pred, y.as_subclass(Tensor), soft[y.as_subclass(Tensor)], None)
        learn.loss_func = with_soft
        return learn
    (one,) = in_processes(trained(make), 1)
    for other in in_processes(trained(make)): equal(one, other)

@pytest.mark.gpu
def test_connected_by_nccl():
    "Two processes on one GPU, which NCCL takes for two machines; in a new process, because this one may have used the GPU"
    names = 'fixmatch','freematch','mcd','distill','fixmatch, batch norms'
    run = subprocess.run([sys.executable, Path(__file__).with_name('nccl_runs.py'), *names], capture_output=True, text=True)
    assert run.returncode==0, run.stdout
