"Runs in processes that are killed: forked after the imports, so that a start costs no time"
import signal
import test_methods
from helpers import *
from fastssl.samples.figures import figures_dls
import fastssl.training.plain_files as plain_files

n_epoch,n_steps = 3,4

# ------ tiny tasks
class Jitter(Transform):
    "Random numbers of Python and PyTorch for each item"
    split_idx = 0
    def encodes(self, x:PILImageBW): return PILImageBW(x.rotate(random.uniform(-9, 9)+float(torch.rand(()))))

def digits(workers):
    kw = dict(in_memory=False, num_workers=2, item_tfms=Jitter()) if workers else {}
    return mk_dls(n_steps=n_steps, n_test=40, **kw)
def figures(workers): return figures_dls(n=40, n_test=10, n_test_source=4, bs=8, n_steps=n_steps)
def numbers(workers):
    X,_ = digits_data()
    X = torch.as_tensor(X).float()[:,None]/255
    block = DataBlock((TransformBlock(), RegressionBlock(n_out=2)), get_x=lambda i: TensorBase(X[i]),
                      get_y=lambda i: [X[i].mean().item(), X[i][...,:4].mean().item()], splitter=IndexSplitter(range(20)))
    return block.dataloaders(range(60), bs=12, num_workers=2*workers).add_unlabeled(range(100, 200), bs=20, n_steps=n_steps, seed=0)

methods = dict(test_methods.METHODS, softmatch=partial(SoftMatchCallback, decay=.98), flexmatch=partial(FlexMatchCallback, .3),
    mddregression=MDDRegressionCallback, regda=partial(RegDACallback, source_only=.3, max_iters=10, num_layers=1))
no_mixup = {*test_methods.replaces_loss, 'mddregression', 'regda'}
no_accumulation = {'mcd', 'regda'}
extras = dict(alone=lambda: [], ema=lambda: [EMACallback(.9)], mixup=lambda: [MixUp()], accumulation=lambda: [GradientAccumulation(15)],
    all=lambda: [EMACallback(.9), MixUp(), GradientAccumulation(15)], workers=lambda: [EMACallback(.9)],
    trackers=lambda: [EMACallback(.9), SaveModelCallback(monitor='valid_loss', with_opt=True), ReduceLROnPlateau(patience=1), EarlyStoppingCallback(patience=9)])

def runs_with(method, extra):
    "Can the two be combined?"
    return not (method in no_mixup and extra in ('mixup','all') or method in no_accumulation and extra in ('accumulation','all'))

def build(method, extra, folder):
    set_seed(0)
    workers = extra=='workers'
    dls = figures(workers) if method=='regda' else numbers(workers) if method=='mddregression' else digits(workers)
    set_seed(1)
    dls.train.rng = random.Random(1)
    cbs = [methods[method](), *extras[extra]()]
    if method=='regda': return keypoint_learner(dls, tiny_body(4), hidden=(8,), num_layers=1, cbs=cbs, path=folder)
    metrics = [] if method=='mddregression' else accuracy
    return ssl_learner(dls, tiny_cnn(nf=4, n_out=get_c(dls)), cbs=cbs, metrics=metrics, path=folder)

def result(learn):
    "Everything that must be equal"
    ema = first(learn._grab_cbs(EMACallback))
    rec,pool = learn.recorder,learn.dls.pool
    return dict(
        weights=weights(learn.model), ema=ema and dict(teacher=weights(ema.teacher.model), n=ema.teacher.n, raw=ema.raw),
        values=[list(o) for o in rec.values], lrs=list(rec.lrs), losses=[float(o) for o in rec.losses], iters=list(rec.iters), hps={k:list(v) for k,v in rec.hps.items()},
        ssl={k:list(v) for k,v in rec.ssl.items()}, pool=(pool.pos, pool.seed), loaders=[dl.rng.getstate() for dl in learn.dls.loaders],
        draws=[torch.get_rng_state(), random.getstate(), np.random.get_state()], states=[m.state_dict() for m in learn._grab_cbs(SSLCallback)],
        opt=learn.opt.state_dict(), modes=[m.training for m in learn.model.modules()], steps=learn.train_iter, best=[getattr(c, 'best', None) for c in learn.cbs])

def differences(a, b, at='', limit=6):
    "Where two results differ"
    if isinstance(a, Tensor): ok = isinstance(b, Tensor) and a.shape==b.shape and torch.equal(a.nan_to_num(7.), b.nan_to_num(7.))
    elif isinstance(a, np.ndarray): ok = np.array_equal(a, b)
    elif isinstance(a, dict):
        if not isinstance(b, dict) or list(a)!=list(b): return [f'{at} keys']
        return [o for k in a for o in differences(a[k], b[k], f'{at}.{k}')][:limit]
    elif isinstance(a, (list,tuple,L)):
        if len(a)!=len(b): return [f'{at} length']
        return [o for i,(x,y) in enumerate(zip(a, b)) for o in differences(x, y, f'{at}[{i}]')][:limit]
    else: ok = a==b or (a!=a and b!=b)
    return [] if ok else [at]

# ------ processes
def in_process(f, kill_after=None, timeout=100):
    "Run `f` in a fork; its exit code, −9 if it was killed"
    pid = os.fork()
    if not pid:
        code = 1
        os.setpgid(0, 0)                                    # its workers are killed with it
        sys.stdout = open(os.devnull, 'w')
        try:
            f()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    end = time.time()+timeout
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    while True:
        done,status = os.waitpid(pid, os.WNOHANG)
        if done:
            try: os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError: pass                 # no worker is left
            return os.waitstatus_to_exitcode(status)
        if time.time()>end: os.kill(pid, signal.SIGKILL)
        time.sleep(.005)

def die(): os.kill(os.getpid(), signal.SIGKILL)

# ------ where a process is killed
def kill_in_step(learn, rng): _in_batch(learn, rng, True)
def kill_in_validation(learn, rng): _in_batch(learn, rng, False)
def _in_batch(learn, rng, training):
    at,seen,one_batch = rng.randrange(2 if training else 1, n_epoch*n_steps if training else n_epoch),[],learn.one_batch
    before = rng.random()<.5
    def _one_batch(i, b):
        if learn.training==training: seen.append(i)
        now = learn.training==training and len(seen)>at
        if now and before: die()
        one_batch(i, b)
        if now: die()
    learn.one_batch = _one_batch

def kill_in_write(learn, rng, most=30):
    "Before a rename or a deletion, or when half of the tensors are written"
    at,seen = rng.randrange(most),[]
    def count():
        seen.append(1)
        return len(seen)>at
    replace,unlink,save = os.replace,Path.unlink,plain_files.save_file
    def _replace(*args):
        if count(): die()
        replace(*args)
    def _unlink(self, **kw):
        if count(): die()
        unlink(self, **kw)
    def _save(tensors, path):
        save(tensors, path)
        if count():
            os.truncate(path, os.path.getsize(path)//2)
            die()
    os.replace,Path.unlink,plain_files.save_file = _replace,_unlink,_save

def kill_in_swap(learn, rng):
    "While the averaged weights are copied into the model"
    at,seen,copy_ = rng.randrange(1, n_epoch),[],torch._foreach_copy_
    ema_in = EMACallback.ema_in
    def _ema_in(self):
        seen.append(1)
        if len(seen)<=at or self.raw is not None: return ema_in(self)
        def half(a, b):
            copy_(a[:len(a)//2], b[:len(b)//2])
            die()
        torch._foreach_copy_ = half
        ema_in(self)
    EMACallback.ema_in = _ema_in

kills = dict(step=kill_in_step, validation=kill_in_validation, write=kill_in_write, early_write=partial(kill_in_write, most=6), swap=kill_in_swap)

# ------ a case
class Case:
    "A run, whole and in pieces"
    def __init__(self, method, extra, folder, every=None):
        self.method,self.extra,self.every = method,extra,every
        self.folder = Path(folder)/f'{method}_{extra}_{every}'
        self.folder.mkdir(parents=True, exist_ok=True)
    def run(self, name, keep, kill=None, seed=0, last_step=None):
        "Train, keep the run in a folder, and write the result"
        folder = self.folder/name
        folder.mkdir(exist_ok=True)
        learn = build(self.method, self.extra, folder)
        if keep and list(folder.glob('run/*/run.json')):                          # what was drawn before the state is restored does not matter
            torch.rand(17)
            random.random()
            np.random.rand()
        if kill: kills[kill](learn, random.Random(seed))
        trained,one_batch = [],learn.one_batch
        def _one_batch(i, b):
            trained.append(learn.training)
            one_batch(i, b)
            if sum(trained)==last_step: die()
        learn.one_batch = _one_batch
        with quiet(learn): learn.fit_one_cycle(n_epoch, 1e-2, cbs=[KeepRun(folder/'run', self.every)] if keep else None)
        torch.save(dict(result=result(learn), trained=sum(trained)), folder/'result.pkl')
    def result(self, name): return torch.load(self.folder/name/'result.pkl', weights_only=False)
    def kept_steps(self, name):
        "Steps that need not be repeated"
        file = self.folder/name/'run'/'fit_0'/'run.json'
        return json.loads(file.read_text())['steps'] if file.exists() else 0
    def whole(self):
        "The result of the run that nobody disturbs, and its seconds"
        if not (self.folder/'whole'/'result.pkl').exists():
            start = time.time()
            assert in_process(partial(self.run, 'whole', False))==0
            self.seconds = time.time()-start
        return self.result('whole')['result']
    def compare(self, kill, seed):
        "Kill a run, start it again: (was it killed?, steps kept, differences from the whole run)"
        whole,name = self.whole(),f'{kill}_{seed}'
        if kill=='time': code = in_process(partial(self.run, name, True), kill_after=random.Random(seed).uniform(.2, 1)*self.seconds)
        else: code = in_process(partial(self.run, name, True, kill, seed))
        assert code in (0, -9), code
        kept = self.kept_steps(name)
        if code==-9:
            assert in_process(partial(self.run, name, True))==0
            assert self.result(name)['trained']==n_epoch*n_steps-kept
        return code==-9,kept,differences(whole, self.result(name)['result'])
    def compare_killed_often(self, n, seed):
        "The same with `n` kills, each after a step or in a write"
        rng,name,kills_so_far = random.Random(seed),f'often_{seed}',0
        whole = self.whole()
        while kills_so_far<n:
            if rng.random()<.7: code = in_process(partial(self.run, name, True, 'early_write', rng.randrange(2**31)))
            else: code = in_process(partial(self.run, name, True, last_step=1))
            if code==0: break
            kills_so_far += 1
        if code: assert in_process(partial(self.run, name, True))==0
        return kills_so_far,differences(whole, self.result(name)['result'])

def kill_in_nth_step(n):
    "Kill this process before its `n`-th training step"
    if n is None: return
    seen,one_batch = [],Learner.one_batch
    def _one_batch(self, i, b):
        seen.append(self.training)
        if sum(seen)==n: die()
        one_batch(self, i, b)
    Learner.one_batch = _one_batch
