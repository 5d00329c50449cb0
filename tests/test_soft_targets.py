"A store of soft targets survives the death of the process that writes it: it is complete or absent, and resuming gives the same bytes"
import os, random, shutil, signal, time
from pathlib import Path
import numpy as np, pytest
from helpers import *

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
