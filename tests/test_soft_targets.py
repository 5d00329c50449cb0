"A store of soft targets survives the death of the process that writes it: it is complete or absent, and resuming gives the same bytes"
import os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest
from helpers import *
from fastai.distributed import *
from fastssl.training.testing import in_processes

needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')

def run(f, kill_after=None):
    "Run `f` in a new process, killed after `kill_after` seconds; return whether it was still alive"
    pid = os.fork()
    if not pid:
        try: f()
        finally: os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

def files(p): return {f.name:f.read_bytes() for f in sorted(Path(p).iterdir())}

class Slow(Callback):
    def after_batch(self): time.sleep(.01)

@needs_fork
@pytest.mark.parametrize('kw', [dict(), dict(topk=3), dict(tta=1)], ids=['all','topk','tta'])
def test_ten_kills_at_random(tmp_path, kw):
    X,y = digits_data()
    items = list(zip(X, y.tolist()))[:1000]
    learn = mk(dls=mk_dls(in_memory=False, num_workers=0), cbs=Slow())
    with quiet(learn): learn.fit(1)
    save = lambda name='parts': save_soft_targets(learn, items, tmp_path/name, chunk=90, bs=45, progress=False, **kw)
    start = time.time(); save('whole'); took = time.time()-start
    whole,rng,kills,progress = files(tmp_path/'whole'),random.Random(0),0,[]
    while kills<10:
        kills += run(save, rng.uniform(.02, .5)*took)
        if (tmp_path/'parts').exists():                            # finished before it was killed: the store is complete
            SoftTargets.load(tmp_path/'parts', verify=True)
            assert files(tmp_path/'parts')==whole
            shutil.rmtree(tmp_path/'parts')
        else:
            p = partial_path(tmp_path/'parts')/'progress.json'
            progress.append(json.loads(p.read_text())['rows'] if p.exists() else 0)
    assert max(progress)>0
    save()
    assert files(tmp_path/'parts')==whole

@needs_fork
def test_a_kill_at_every_single_step_of_writing(tmp_path, monkeypatch):
    "The process kills itself before its n-th file system call, for every n"
    z = np.random.default_rng(0).normal(size=(40,5)).astype(np.float32)
    keys = [f'{i}.png' for i in range(40)]
    def save(path):
        w = StoreWriter(path, keys, ItemKey('name'), list('abcde'), topk=2)
        for i in range(w.done, 40, 15): w.write(z[i:i+15])
        w.close()
    calls = [(os,k) for k in ('fsync','replace','rename','unlink')]+[(np,'save')]
    def dying(n):
        count = [0]
        def wrap(f):
            def g(*args, **kwargs):
                if count[0]==n: os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                return f(*args, **kwargs)
            return g
        for m,k in calls: setattr(m, k, wrap(getattr(m, k)))
        save(tmp_path/'parts')
    save(tmp_path/'whole')
    whole,n = files(tmp_path/'whole'),0
    while run(lambda: dying(n)):
        if (tmp_path/'parts').exists(): assert files(tmp_path/'parts')==whole
        else:
            with pytest.raises(FileNotFoundError): SoftTargets.load(tmp_path/'parts')
            part = partial_path(tmp_path/'parts')
            rows = 40 if (part/'manifest.json').exists() else json.loads((part/'progress.json').read_text())['rows'] if (part/'progress.json').exists() else 0
            assert StoreWriter(tmp_path/'parts', keys, ItemKey('name'), list('abcde'), topk=2).done==rows   # completed rows are not written again
        save(tmp_path/'parts')
        assert files(tmp_path/'parts')==whole, n
        shutil.rmtree(tmp_path/'parts')
        n += 1
    assert n>=20

# ------------------------------------------------------------------ a store that several processes write
class Dies(Callback):
    "Kills its process, or raises, before batch `n` of process `rank`"
    def __init__(self, rank, n, how='kill'): self.rank,self.n,self.how = rank,n,how
    def before_batch(self):
        self.n -= 1
        if self.n>=0 or rank_distrib()!=self.rank: return
        if self.how=='kill': os.kill(os.getpid(), signal.SIGKILL)
        self.learn.xb = (self.x*math.nan,)

X,Y = digits_data()
ITEMS = list(zip(X, Y.tolist()))[:700]
def teacher(*cbs, seed=1):
    dls = mk_dls(in_memory=False, num_workers=0)
    set_seed(seed)
    return Learner(dls, no_bn(), loss_func=CrossEntropyLossFlat(), cbs=L(cbs), path=Path(tempfile.mkdtemp()))
def same_store(a, b):
    "The same rows to the bit, the same keys, and the same said about both"
    a,b = SoftTargets.load(a, verify=True),SoftTargets.load(b, verify=True)
    assert torch.equal(a.logits(), b.logits()) and list(a.keys())==list(b.keys())
    strip = lambda m: {k:v for k,v in m.items() if k not in ('crc','shards','version')}
    assert strip(a.meta)==strip(b.meta)
    for i in (0,349,350,351,699): assert torch.equal(a[ITEMS[i]], b.logits([i])[0]) and a.row(ITEMS[i])==i
    rows = np.array([699,3,-1,352,3])
    assert torch.equal(a.logits(rows), b.logits(rows)) and torch.equal(a.logits(slice(340, 360, 3)), b.logits(slice(340, 360, 3)))
    return a

@needs_fork
@pytest.mark.parametrize('kw', [dict(), dict(topk=3), dict(tta=1), dict(dtype='float32', chunk=33), 'net', 'ctx'], ids=str)
def test_store_of_two_processes_is_that_of_one(tmp_path, kw):
    how,kw = (kw,{}) if isinstance(kw, str) else ('learner',kw)
    kw = {**dict(chunk=70, bs=35, progress=False), **kw}
    def save():
        name = tmp_path/f'{how}{max(1, num_distrib())}'
        learn = teacher(*([SSLStep()] if how=='ctx' else []))
        if how=='net':
            rows = [tensor(x)[None]/255 for x,_ in ITEMS]
            return len(save_soft_targets(learn.model, ITEMS, name, dl=DataLoader(rows, bs=32), progress=False))
        if how=='ctx' and num_distrib():
            with learn.distrib_ctx(sync_bn=False):
                n = len(save_soft_targets(learn, ITEMS, name, **kw))
                fit(learn, lr=0.)                           # the learner is as before
                return n
        return len(save_soft_targets(learn, ITEMS, name, **kw))
    for n in (1,2,3): assert in_processes(save, n)==[700]*n
    one = SoftTargets.load(tmp_path/f'{how}1')
    assert 'shards' not in one.meta and one.meta['version']==1
    for n in (2,3):
        many = same_store(tmp_path/f'{how}{n}', one.path)
        assert len(many.meta['shards'])==n and many.meta['version']==2 and max(np.diff([*many.meta['shards'], 700]))<=700/n+70
        assert repr(many).replace(f'{how}{n}:', f'{how}1:')==repr(one)
    assert len(in_processes(save, 2))==2                    # complete: it is read as it is, by any number of processes
    saved = files(many.path)
    many.path.rename(tmp_path/f'{how}2b')
    assert files(tmp_path/f'{how}2b')==saved

@needs_fork
@pytest.mark.parametrize('runs', [[(2,0),(2,1),(2,None)], [(2,1),(1,None)], [(1,0),(3,2),(2,0),(1,0),(3,None)]], ids=str)
def test_killed_processes_are_resumed_by_any_number(tmp_path, runs):
    kw = dict(chunk=10, bs=10, topk=2, progress=False)
    save_soft_targets(teacher(), ITEMS, tmp_path/'whole', **kw)
    part,done = partial_path(tmp_path/'parts'),[0]
    for n,dies in runs:
        def save(): save_soft_targets(teacher(*([] if dies is None else [Dies(dies, 2)])), ITEMS, tmp_path/'parts', **kw)
        if dies is None: in_processes(save, n)
        else:
            with pytest.raises(RuntimeError, match='it was killed'): in_processes(save, n)
            with pytest.raises(FileNotFoundError, match='unfinished'): SoftTargets.load(tmp_path/'parts')
            done.append(sum(json.loads(f.read_text())['rows'] for f in part.glob('progress*.json')))
            assert done[-1]>=done[-2]+2*10                  # what was complete is kept, and the others went on
    same_store(tmp_path/'parts', tmp_path/'whole')
    assert not part.exists() and not [f for f in (tmp_path/'parts').iterdir() if 'progress' in f.name or f.name.startswith('.')]

@needs_fork
def test_what_differs_between_processes_is_an_error_in_all(tmp_path):
    def fails(save, msg, exc=ValueError):
        def run():
            with pytest.raises(exc, match=msg): save()
        in_processes(run)
        assert not (tmp_path/'s').exists()
        shutil.rmtree(tmp_path/'s.partial', ignore_errors=True)
    kw = dict(chunk=35, bs=35, progress=False)
    fails(lambda: save_soft_targets(teacher(seed=rank_distrib()), ITEMS, tmp_path/'s', **kw), 'items or teachers of process 1 are not those of process 0: teachers=')
    fails(lambda: save_soft_targets(teacher(), ITEMS[:600+rank_distrib()], tmp_path/'s', **kw), r'rows=601, .*but rows=600')
    fails(lambda: save_soft_targets(teacher(), ITEMS, tmp_path/'s', topk=10, **kw), 'topk=10')
    fails(lambda: save_soft_targets(teacher(Dies(1, 2, 'nan')), ITEMS, tmp_path/'s', **kw), 'NaN or infinity|another of the 2 processes has failed', (ValueError,RuntimeError))
    (tmp_path/'mine').mkdir()
    fails(lambda: save_soft_targets(teacher(), ITEMS, tmp_path/'mine', **kw), 'is not a store of soft targets', FileExistsError)

launched = """
import sys
sys.path.insert(0, {tests!r})
from test_soft_targets import *
save_soft_targets(teacher(), ITEMS, {path!r}, chunk=70, bs=35, progress=False)
"""
def test_accelerate_launch(tmp_path):
    "Two processes that `accelerate launch` starts, on a machine without a GPU too"
    (tmp_path/'teach.py').write_text(launched.format(tests=str(Path(__file__).parent), path=str(tmp_path/'two')))
    command = '-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0'
    res = subprocess.run([sys.executable, *command.split(), tmp_path/'teach.py'], capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-3000:]
    save_soft_targets(teacher(), ITEMS, tmp_path/'one', chunk=70, bs=35, progress=False)
    assert same_store(tmp_path/'two', tmp_path/'one').meta['shards']==[0,350]

def test_shards_are_verified(tmp_path):
    def edit(f):
        shutil.rmtree(tmp_path/'bad', ignore_errors=True); shutil.copytree(tmp_path/'s', tmp_path/'bad')
        f(tmp_path/'bad')
        with pytest.raises(ValueError, match='damaged|manifest of'): SoftTargets.load(tmp_path/'bad', verify=True)
    keys,z = [f'{i}.png' for i in range(40)],np.random.default_rng(0).normal(size=(40,5)).astype(np.float32)
    w = StoreWriter(tmp_path/'s', keys, ItemKey('name'), list('abcde'))
    for i in (30,0,15): w.write(z[i:i+15], i)
    with pytest.raises(ValueError, match='written already'): w.write(z[:15], 0)
    w.close()
    soft = SoftTargets.load(tmp_path/'s', verify=True)
    assert soft.meta['shards']==[0,30] and torch.equal(soft.logits(), torch.from_numpy(z).half().float())
    def bit(p): a = np.load(p/'logits-30.npy'); a[3,2] += 1; np.save(p/'logits-30.npy', a)
    def swap(p): a,b = np.load(p/'logits.npy'),np.load(p/'logits-30.npy'); np.save(p/'logits.npy', a[:20]); np.save(p/'logits-30.npy', np.concatenate([a[20:], b]))
    def manifest(**kw):
        def f(p): m = json.loads((p/'manifest.json').read_text()); m.update(kw); (p/'manifest.json').write_text(json.dumps(m))
        return f
    for f in (bit, swap, lambda p: (p/'logits-30.npy').unlink(), manifest(shards=[0]), manifest(shards=[0,20]), manifest(shards=[30,0]), manifest(shards='x'), manifest(shards=[])): edit(f)
