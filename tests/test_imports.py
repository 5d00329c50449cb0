"Each module imports by itself, and nothing that comes later; behavior does not depend on what was imported"
import ast, importlib, json, os, pkgutil, subprocess, sys
from pathlib import Path
import fastssl

root = Path(__file__).parent.parent
found = [m for m in pkgutil.walk_packages(fastssl.__path__, 'fastssl.') if not m.name.endswith('._modidx')]
packages = sorted(m.name for m in found if m.ispkg)
modules = sorted(m.name for m in found if not m.ispkg)

def notebook_numbers():
    "Module → number of its notebook"
    res = {}
    for path in (root/'nbs').glob('[0-9]*.ipynb'):
        sources = [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
        name, = [l.split()[-1] for s in sources for l in s.splitlines() if l.startswith('#| default_exp')]
        res[f'fastssl.{name}'] = int(path.name.split('_')[0])
    return res

# One process imports what the library builds on. Each check then runs in a fork of it, in which no module of fastssl is loaded.
forks = '''
import importlib, os, sys, tempfile, traceback, warnings
warnings.filterwarnings('ignore')
sys.path.insert(0, {root!r})
from fastai.vision.all import *
torch.set_num_threads(1)

def loaded(): return {{m for m in sys.modules if m.startswith('fastssl.')}}
def in_fork(name, check):
    "Print whether `check` passes in a process of its own"
    pid = os.fork()
    if pid:
        _,status = os.waitpid(pid, 0)
        print(name, 'ok' if status==0 else 'FAILED', flush=True)
        return
    try:
        check(name)
        os._exit(0)
    except BaseException: traceback.print_exc()
    os._exit(1)
'''

# The package loads the whole library unless a command runs: its name in `sys.argv` shows a module alone.
alone = forks+'''
import builtins, dis, types, pandas, timm, sklearn.cluster, sklearn.linear_model, sklearn.metrics, sklearn.neighbors
def codes(code):
    yield code
    for o in code.co_consts:
        if isinstance(o, types.CodeType): yield from codes(o)
def missing_names(module):
    "Global names that functions of `module` read, but that it does not have"
    source = Path(module.__file__).read_text(encoding='utf-8')
    read = {{i.argval for c in codes(compile(source, module.__file__, 'exec')) for i in dis.get_instructions(c) if i.opname=='LOAD_GLOBAL'}}
    return {{n for n in read if not hasattr(module, n) and not hasattr(builtins, n)}}
def check(name):
    assert not loaded()
    sys.argv = ['fastssl_train']
    module = importlib.import_module(name)
    later = {{m for m in loaded() if numbers.get(m, 0)>numbers[name]}}
    assert not later, f'{{name}} loads what comes later: {{later}}'
    packages = {{m.split('.')[1] for m in loaded()}} & {{'semi','adapt','distill'}}
    package = name.split('.')[1]
    assert package not in ('semi','adapt','distill') or packages=={{package}}, f'{{name}} loads another package of methods: {{packages}}'
    assert not missing_names(module), f'{{name}} has no {{missing_names(module)}}'
numbers = {numbers!r}
for name in {modules!r}: in_fork(name, check)
'''

fit = forks+'''
def check(name):
    if name not in loaded(): importlib.import_module(name)
    from fastssl.semi.fixmatch import FixMatchCallback
    from sklearn.datasets import load_digits
    X,y = load_digits(return_X_y=True)
    X = X.reshape(-1,1,8,8).astype(np.float32)/16
    block = DataBlock((TransformBlock, CategoryBlock), get_x=lambda o: tensor(X[o]), get_y=lambda o: y[o], splitter=IndexSplitter(range(20,40)))
    dls = block.dataloaders(range(40), bs=10, num_workers=0)
    dls.add_unlabeled(range(40,100), uratio=2, n_steps=2, strong=lambda x: x+.1*torch.randn_like(x))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,16), nn.ReLU(), nn.Linear(16,10))
    learn = Learner(dls, model, metrics=accuracy, cbs=FixMatchCallback(.1), path=tempfile.mkdtemp())
    assert [type(c).__name__ for c in learn.cbs][-5:]==['SSLStep','SSLRecorder','StopOnNaN','PoolReport','FixMatchCallback'], learn.cbs
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        assert learn.recorder.metric_names==['epoch','train_loss','valid_loss','accuracy','fix_match_loss','kept','time'], learn.recorder.metric_names
        assert len(learn.pseudo_labels())==60
        patched = (learn, 'show_pseudo_labels self_train export_plain'), (learn.recorder, 'plot_ssl'), (dls, 'pool pool_dl show_views show_domains')
        assert all(hasattr(o, k) for o,ks in patched for k in ks.split())
        try: learn.fit(2, 1e30)
        except FloatingPointError: pass
        else: assert False, 'a diverged fit ended without an error'
assert not loaded()
import fastssl
in_fork('fastssl', lambda _: check('fastssl.all'))
for name in {modules!r}:
    if name in loaded(): print(name, 'ok', flush=True)          # its import changes nothing any more
    else: in_fork(name, check)
'''

def run_forks(script, **values):
    "What the forks of `script` print: name → 'ok' or 'FAILED'; and their error output"
    r = subprocess.run([sys.executable, '-c', script.format(root=str(root), **values)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
    assert r.returncode==0, r.stderr[-3000:]
    return dict(l.rsplit(' ', 1) for l in r.stdout.splitlines() if l.startswith('fastssl')),r.stderr[-3000:]

def test_each_module_imports_by_itself():
    "Alone in a fresh process it has all names that it reads, and loads no module that comes later, nor another package of methods"
    numbers = notebook_numbers()
    assert len(modules)>60 and sorted(numbers)==modules
    found,errors = run_forks(alone, modules=modules, numbers=numbers)
    assert list(found)==modules
    assert {m for m,v in found.items() if v!='ok'}==set(), errors

def test_each_module_gives_the_same_learner():
    "The package loads the library; what it leaves out, the commands, changes nothing if it is imported as well"
    names = [*packages, *modules]
    found,errors = run_forks(fit, modules=names)
    assert list(found)==['fastssl',*names]
    assert {m for m,v in found.items() if v!='ok'}==set(), errors

def test_names_come_from_the_module_that_defines_them():
    import fastssl.all
    for name in modules:
        module = importlib.import_module(name)
        for node in ast.parse(Path(module.__file__).read_text(encoding='utf-8')).body:
            if name=='fastssl.all' or not isinstance(node, ast.ImportFrom) or not node.level: continue
            source = importlib.util.resolve_name('.'*node.level+(node.module or ''), module.__package__)
            for k in node.names:
                home = getattr(getattr(importlib.import_module(source), k.name, None), '__module__', source)
                assert home==source or not home.startswith('fastssl'), f'{name} imports {k.name} from {source}, but it is defined in {home}'
