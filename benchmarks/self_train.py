"""Rounds of `self_train` on scikit-learn's digits: accuracy after each round, by how the pseudo-labels are kept.

`python benchmarks/self_train.py` prints mean ± sd over splits. Each round has as many steps as the teacher. 'supervised, all steps' is
supervised training for as many steps as all rounds together, and 'both views, all steps' adds the labels' strong view to the loss."""
import tempfile, warnings
warnings.filterwarnings('ignore')
from fastcore.script import call_parse
from fastai.vision.all import *
from fastssl.all import *

settings = {
    'all, hard':          dict(),
    'all, soft':          dict(soft=True),
    'soft, T=.5':         dict(soft=True, temperature=.5),
    'confidence ≥ .9':    dict(threshold=.9),
    'share .2 … 1':       'growing',
    'from the teacher':   dict(soft=True, student=True)}     # students start from their teacher's weights

def mk(seed, steps, n_per_class, cbs=None):
    set_seed(seed, reproducible=True)
    dls = digits_dls(n_per_class, seed, bs=20, n_steps=steps//5)
    return Learner(dls, tiny_cnn(nf=16), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=cbs, path=tempfile.mkdtemp())

def run(name, seed, rounds, steps, n_per_class):
    "Accuracy after each round, in percent"
    kw = settings[name]
    if kw=='growing': kw = dict(share=[.2+.8*r/max(rounds-1, 1) for r in range(rounds)])
    learn = mk(seed, steps, n_per_class)
    with quiet(learn):
        if kw.get('student'): kw = {**kw, 'student':lambda: deepcopy(learn.model)}
        df = self_train(learn, rounds, 5, 2e-2, **kw)
    return [100*a for a in df.accuracy]

def supervised(seed, steps, n_per_class, cb):
    learn = mk(seed, steps, n_per_class, cb())
    with quiet(learn): learn.fit_one_cycle(5, 2e-2)
    return 100*learn.recorder.values[-1][2]

@call_parse
def main(
    seeds:int=5, # Splits
    first:int=0, # The first split
    rounds:int=3, # Students
    steps:int=250, # Steps per round
    labels:int=4, # Labels per class
    only:str='' # Names of settings to run, separated by ';'
):
    torch.set_num_threads(1)
    splits = range(first, first+seeds)
    print(f'digits, {labels} labels per class, {steps} steps per round, splits {first}–{first+seeds-1}; accuracy in %\n')
    line = lambda name, cols: print(f'{name:<20}' + ''.join(f'{c:>14}' for c in cols), flush=True)
    ms = lambda v: f'{np.mean(v):.1f} ± {np.std(v, ddof=1):.1f}' if len(v)>1 else f'{v[0]:.1f}'
    line('', ['teacher', *(f'round {r+1}' for r in range(rounds))])
    for n in [o for o in settings if not only or o in only.split(';')]: line(n, map(ms, np.array([run(n, s, rounds, steps, labels) for s in splits]).T))
    for n,cb in {'supervised':SSLStep, 'both views':SupStrongCallback}.items(): line(f'{n}, all steps', [ms([supervised(s, steps*(rounds+1), labels, cb) for s in splits])])
