"""The run of `speedrun.py` by the library: its views, network, labels and settings, in a `Learner` with a method of a few lines.

`python benchmarks/speedrun_library.py` appends to `speedrun.csv` too. One thing differs: labels are spread over the features of the averaged
weights, which are in the model between epochs. Seconds cover making the data, the learner and the fit."""
import math, time, warnings
warnings.filterwarnings('ignore')
from fastai.vision.all import *
from fastssl.all import *
import speedrun
from speedrun import settings

def normalized(x): return (x.as_subclass(Tensor).float()/255-.3)/.37

class SpreadLabels(SSLCallback):
    "The strong view learns labels that spread over a graph of neighbors: of pixels at first, then of the network's features"
    views = ('strong',)
    def before_train(self):
        x,y = self.dls.pool.labeled_rows
        x,pool = normalized(x),normalized(self.dls.pool.tensors[0])
        if self.epoch: x,pool = speedrun.features(self.learn.model, x),speedrun.features(self.learn.model, pool)
        self.soft = speedrun.propagate(x, y.as_subclass(Tensor), pool, settings['n_neighbors'])
    def before_forward(self, b): b.x.l.weak = speedrun.weak(b.x.l.weak)
    def unsup_loss(self, b): return F.cross_entropy(b.u.strong, self.soft[b.idx])

def run(split, seed):
    "Accuracy in percent and CPU seconds, as `speedrun.run`"
    X,y = digits_data()
    f = json.loads((speedrun.here/'speedrun_splits.json').read_text())[str(split)]
    rest = np.setdiff1d(np.arange(len(y)), f['test'])
    known = np.where(np.isin(rest, f['labeled']), y[rest], -1)
    set_seed(seed)
    start = time.process_time()
    steps,lr = settings['steps'],settings['lr']
    dls = SSLDataLoaders.from_arrays(X[rest], known, valid=(X[f['test']], y[f['test']]), vocab=list(range(10)), bs=40, n_steps=math.ceil(steps/4),
                                     seed=seed, batch_tfms=Normalize.from_stats([.3],[.37]), strong=speedrun.strong)
    dls.pool.bs,dls.valid.n = settings['n_unlabeled'],1           # no validation while the clock runs
    adam = partial(OptimWrapper, opt=partial(torch.optim.AdamW, betas=(.9,.99), eps=1e-5, weight_decay=.01, foreach=True))
    learn = Learner(dls, speedrun.network(settings['width']), loss_func=CrossEntropyLossFlat(), opt_func=adam,
                    cbs=[SSLStep('separate'), SpreadLabels(), EMACallback(settings['decay'])])
    with quiet(learn): learn.fit(4, cbs=ParamScheduler(dict(lr=lambda pct: lr*min(1, 10*pct+.1)*(1-pct))))
    speedrun.refresh_norms(learn.model, normalized(dls.pool.tensors[0]))
    seconds = time.process_time()-start
    with torch.no_grad(): right = (learn.model(normalized(torch.as_tensor(X[f['test']])[:,None])).argmax(1)==torch.as_tensor(y[f['test']])).float().mean().item()
    return 100*right,seconds

if __name__=='__main__': speedrun.log_runs('speedrun_library.py', run, *speedrun.arguments())
