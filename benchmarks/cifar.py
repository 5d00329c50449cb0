"""CIFAR-10 from scratch: what each method gives without an argument, with its two controls.

`python benchmarks/cifar.py cifar10_train.npz --labels 250 --steps 1000 --splits 0,1,2` trains every row (a ResNet of 78,000 parameters, 32 labeled and 128 unlabeled rows per step, crop and flip, `fit_one_cycle(10, 1e-2)`, a pool of
9,000 images, 2,000 held-out images; `--pool 48000` takes all others) and appends to `benchmarks/cifar.csv`. LABELS counts all classes together. `--rows fixmatch,supervised` picks rows, `--summary` prints the table."""
import argparse, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastssl.all import *
from methods import archive, small_resnet
from rows import append, summary

file = Path(__file__).with_suffix('.csv')
names = 'fixmatch','flexmatch','freematch','softmatch','uda','meanteacher'
rows = dict(supervised=lambda: SSLStep(), both_views=SupStrongCallback, **{n:ssl_methods()[n] for n in names})
others = dict(fixmatch_sup_strong=lambda: [FixMatchCallback(), SupStrongCallback()])        # by name only

def data(path, labels, split, steps, n_pool, n_test=2000):
    X,y,classes = archive(path, n_pool+n_test, split)
    test,rest = slice(n_test),slice(n_test, None)
    lab,_ = few_labels(y[rest], n_per_class=labels//len(classes), seed=split)
    known = np.full(n_pool, -1)
    known[lab] = y[rest][lab]
    return SSLDataLoaders.from_arrays(X[rest], known, valid=(X[test],y[test]), bs=32, val_bs=500, uratio=4, n_steps=steps//10, seed=split, labels=y[rest][known<0], vocab=range(len(classes)),
                                      batch_tfms=[RandomCropFlip(), Normalize.from_stats(*cifar_stats)])

def run(path, labels, row, split, steps, lr, n_pool):
    set_seed(split)                                  # of the loaders' order
    dls = data(path, labels, split, steps, n_pool)
    set_seed(split, reproducible=True)
    learn = ssl_learner(dls, small_resnet(10), metrics=accuracy, cbs={**rows, **others}[row]())
    with quiet(learn):
        learn.fit_one_cycle(10, lr)
        right = float(learn.validate()[1])
    h = learn.recorder.ssl
    def late(name):
        values = h.get(name, [])[-steps//5:]
        return round(float(np.nanmean(values)), 3) if values else ''
    says = [m.split(':')[0] for m in learn.pool_report.messages] if hasattr(learn, 'pool_report') else []
    append(file, labels=labels, pool=n_pool, steps=steps, lr=lr, row=row, split=split, accuracy=round(100*right, 1), kept=late('kept'), right=late('pseudo_acc'), says=' + '.join(says), device=default_device().type)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('path', nargs='?')
    p.add_argument('--labels', default='250,4000')
    p.add_argument('--splits', default='0,1,2')
    p.add_argument('--rows', default=','.join(rows))
    p.add_argument('--steps', type=int, default=1000)
    p.add_argument('--pool', type=int, default=9000)
    p.add_argument('--lr', type=float, default=1e-2)
    p.add_argument('--summary', action='store_true')
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.summary: summary(file, 'labels', ['pool','steps'])
    else:
        for labels in map(int, a.labels.split(',')):
            for split in map(int, a.splits.split(',')):
                for row in a.rows.split(','): run(a.path, labels, row, split, a.steps, a.lr, a.pool)
