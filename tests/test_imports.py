"Behavior does not depend on what was imported: each module alone, in a fresh process, gives the same learner"
import os, pkgutil, subprocess, sys
from pathlib import Path
import fastssl

root = Path(__file__).parent.parent
modules = sorted(m.name for m in pkgutil.walk_packages(fastssl.__path__, 'fastssl.') if m.name.rsplit('.', 1)[1] not in ('_modidx', '__init__'))

fit = '''
import importlib, sys, tempfile, warnings; warnings.filterwarnings('ignore')
sys.path.insert(0, {root!r})
from fastai.vision.all import *
for name in {modules!r}:
    pid = os.fork()
    if pid:
        _,status = os.waitpid(pid, 0)
        print(name, 'ok' if status==0 else 'FAILED', flush=True)
        continue
    torch.set_num_threads(1)
    assert not [m for m in sys.modules if m.startswith('fastssl')]
    try:
        importlib.import_module(name)
        from fastssl.semi.fixmatch import FixMatchCallback
        from sklearn.datasets import load_digits
        X,y = load_digits(return_X_y=True)
        X = X.reshape(-1,1,8,8).astype(np.float32)/16
        block = DataBlock((TransformBlock, CategoryBlock), get_x=lambda o: tensor(X[o]), get_y=lambda o: y[o], splitter=IndexSplitter(range(20,40)))
        dls = block.dataloaders(range(40), bs=10, num_workers=0)
        dls.add_unlabeled(range(40,100), uratio=2, n_steps=2, strong=lambda x: x+.1*torch.randn_like(x))
        learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64,16), nn.ReLU(), nn.Linear(16,10)), metrics=accuracy, cbs=FixMatchCallback(.1), path=tempfile.mkdtemp())
        assert [type(c).__name__ for c in learn.cbs][-5:]==['SSLStep','SSLRecorder','StopOnNaN','PoolReport','FixMatchCallback'], learn.cbs
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
            assert learn.recorder.metric_names==['epoch','train_loss','valid_loss','accuracy','fix_match_loss','kept','time'], learn.recorder.metric_names
            assert len(learn.pseudo_labels())==60
            assert all(hasattr(o, k) for o,ks in ((learn, 'show_pseudo_labels self_train export_plain'), (learn.recorder, 'plot_ssl'), (dls, 'pool pool_dl show_views show_domains')) for k in ks.split())
            try: learn.fit(2, 1e30)
            except FloatingPointError: pass
            else: assert False, 'a diverged fit ended without an error'
    except BaseException:
        import traceback; traceback.print_exc()
        os._exit(1)
    os._exit(0)
'''
def test_each_module_alone_gives_the_same_learner():
    "Processes are forked after fastai is imported, and before any module of fastssl is"
    r = subprocess.run([sys.executable, '-c', fit.format(root=str(root), modules=modules)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    assert r.returncode==0, r.stderr[-3000:]
    lines = dict(l.rsplit(' ', 1) for l in r.stdout.splitlines() if l.startswith('fastssl.'))
    assert len(modules)>60 and list(lines)==modules
    assert {m for m,v in lines.items() if v!='ok'}==set(), r.stderr[-3000:]
