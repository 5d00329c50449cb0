"""Digits with default settings: what each method gives without an argument in 250 steps, with its two controls.

`python benchmarks/short_runs.py --splits 211,212,213` trains every row (four labels per class, no batch transforms, `fit_one_cycle(10, 1e-3)`, 450 held-out digits) and appends to `benchmarks/short_runs.csv`. Defaults were chosen on splits
100 to 102. `--rows fixmatch,supervised` picks rows, `--summary` prints the table."""
import argparse, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastssl.all import *
from rows import append

file = Path(__file__).with_suffix('.csv')
rows = dict(supervised=lambda: SSLStep(), both_views=SupStrongCallback, **{n:c for n,c in ssl_methods().items() if n not in ('mdd','mcd','afn','mutualmeanteaching')}, fixmatch_paper=lambda: FixMatchCallback(preset='paper'))

def data(split, n_steps):
    X,y = digits_data()
    order = np.random.default_rng(split).permutation(len(y))
    test,rest = order[:450],order[450:]
    lab,_ = few_labels(y[rest], n_per_class=4, seed=split)
    known = np.full(len(rest), -1)
    known[lab] = y[rest][lab]
    return SSLDataLoaders.from_arrays(X[rest], known, valid=(X[test],y[test]), n_steps=n_steps, seed=split, labels=y[rest][known<0], vocab=list(range(10)))

def run(row, split, steps):
    set_seed(split)                                  # of the loaders' order
    dls = data(split, steps//10)
    set_seed(split, reproducible=True)
    learn = ssl_learner(dls, tiny_cnn(), metrics=accuracy, cbs=rows[row]())
    with quiet(learn): learn.fit_one_cycle(10, 1e-3)
    kept = learn.recorder.ssl.get('kept', [])
    late = kept[-max(1, len(kept)//5):]
    says = [m.split(':')[0] for m in learn.pool_report.messages] if hasattr(learn, 'pool_report') else []
    append(file, row=row, split=split, steps=steps, accuracy=round(100*float(learn.validate()[1]), 1), kept=round(sum(late)/len(late), 3) if late else '', says=' + '.join(says))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--splits', default='211,212,213')
    p.add_argument('--rows', default=','.join(rows))
    p.add_argument('--steps', type=int, default=250)
    p.add_argument('--summary', action='store_true')
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.summary: print(pd.read_csv(file).groupby(['steps','row']).accuracy.agg(['mean','std','count']).round(1).sort_values('mean').to_string())
    else:
        for row in a.rows.split(','):
            for split in map(int, a.splits.split(',')): run(row, split, a.steps)
