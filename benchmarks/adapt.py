"""Labeled source, unlabeled target: what each adaptation method gains over training on the source alone.

`python benchmarks/adapt.py` runs three tasks of `fastssl.samples.photos` and `fastssl.samples.figures`, each from clean drawings to
drawings on photographs: `digits` (accuracy), `shapes` (mean absolute error of four factors, each with range 1) and `figures` (PCK).
All methods of a task have the same body and steps, and are evaluated on held-out target items.

Controls: `source` uses the source alone. `source, joint` also forwards the target, without a loss, so that batch norm sees both domains;
`source, group norm` has no batch norm. `source, joint, net of …` is the same on the network of that method, with its bottleneck and
dropout (for `shapes`, all controls use the network of MDD, whose head ends in a sigmoid). `target` trains on the labels of the pool.

Each run appends a line to `--csv`; a second call continues where the first stopped. `--tune` runs the candidate settings of each method
on other seeds (100 and up). The settings in `chosen` come from there: nothing is chosen on the seeds that are reported. Times are CPU
times of the fit without validation, on one thread, as ratios to `source` with the same seed."""
import sys, warnings
warnings.filterwarnings('ignore')
from fastcore.script import call_parse, store_true
from fastai.vision.all import *
from fastssl.all import *
from timing import CPUTime

class Control(SSLCallback):
    "The supervised loss alone, on the network of the method `of` if given, with or without the target in the forward pass"
    def __init__(self, of=None, joint=True): self.of,self.views = of,('weak',)*joint
    def heads(self, nf, n_out): return {k:v for k,v in self.of.heads(nf, n_out).items() if k in ('neck','main')} if self.of else {}

ramp = lambda w: SchedRampUp(0., w)
candidates = dict(
    digits={
        'source': [(lr, lambda: SSLStep()) for lr in (1e-2, 2e-2, 3e-3)],
        'source, group norm': [(1e-2, lambda: SSLStep())],
        'source, joint': [(1e-2, lambda: Control())],
        'MCC': [(1e-2, lambda t=t, w=w: MCCCallback(t, ramp(w))) for t,w in ((1.,1.), (2.5,1.), (2.5,.3))],
        'FixMatch': [(1e-2, lambda t=t: FixMatchCallback(t, ramp(1.))) for t in (.95,.9)],
        'MDD': [(lr, lambda m=m, h=h, n=n: MDDCallback(m, h, n)) for lr,m,h,n in ((1e-2,4.,.1,.3), (1e-2,4.,.1,1.), (1e-2,2.,.1,.3), (3e-3,4.,.1,.3), (3e-3,4.,.3,.3))],
        'source, joint, net of MDD': [(1e-2, lambda: Control(MDDCallback()))],
        'MCD': [(lr, lambda w=w, k=k: MCDCallback(k, weight=w)) for lr,w,k in ((1e-2,1.,4), (1e-2,1.,1), (1e-2,.3,4), (1e-2,.1,1), (3e-3,1.,1))],
        'source, joint, net of MCD': [(3e-3, lambda: Control(MCDCallback()))],
        'AFN': [(1e-2, lambda w=w, e=e: AFNCallback(1., e, weight=w)) for w,e in ((.05,0.), (.015,0.), (.05,2.), (.005,0.), (.003,0.))],     # only the product of weight and Δ matters
        'source, joint, net of AFN': [(1e-2, lambda: Control(AFNCallback()))],
        'target': [(1e-2, lambda: SSLStep())]},
    shapes={
        'source': [(1e-2, lambda: Control(MDDRegressionCallback(bottleneck_dim=128), joint=False))],
        'source, joint': [(1e-2, lambda: Control(MDDRegressionCallback(bottleneck_dim=128)))],
        'MDD': [(lr, lambda m=m, h=h: MDDRegressionCallback(m, h, .3, bottleneck_dim=128)) for lr,m,h in ((1e-2,1.,.01), (1e-2,1.,.03), (1e-2,1.,.1))],
        'target': [(1e-2, lambda: Control(MDDRegressionCallback(bottleneck_dim=128), joint=False))]},
    figures={
        'source': [(6e-3, lambda: SSLStep())],
        'source, joint': [(6e-3, lambda: Control())],
        'RegDA': [(6e-3, lambda s=s, h=h: RegDACallback(s, hi=h)) for s,h in ((.5,.1), (.5,.3), (.3,.1))],
        'target': [(6e-3, lambda: SSLStep())]},
)
chosen = dict(digits=dict(MDD=2, MCD=4, AFN=4), shapes={}, figures={})      # best mean on seeds 100 and 101, if it is not the first candidate (RegDA: seed 100 alone)
n_steps = dict(digits=800, shapes=300, figures=300)

def place_cnn(n_out, nf=16): return nn.Sequential(ConvLayer(3,nf), ConvLayer(nf,2*nf,stride=2), ConvLayer(2*nf,2*nf,stride=2), ConvLayer(2*nf,4*nf,stride=2), nn.Flatten(), nn.Linear(64*nf,128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128,n_out))   # keeps positions

def with_group_norm(net):
    "`net` with group norms in place of batch norms"
    for n,m in [*net.named_modules()]:
        if isinstance(m, nn.BatchNorm2d): setattr(net.get_submodule(n.rpartition('.')[0]), n.rpartition('.')[2], nn.GroupNorm(4, m.num_features))
    return net

def data(task, seed, steps, labeled_target):
    f = dict(digits=photo_digits_dls, shapes=shapes_dls, figures=figures_dls)[task]
    return f(seed, n_steps=max(1, steps//10), labeled_target=labeled_target)

def learner(task, method, dls, cbs):
    if task=='digits': return ssl_learner(dls, (with_group_norm if 'group norm' in method else noop)(tiny_cnn(3, nf=16)), cbs=cbs, metrics=accuracy)
    if task=='figures': return keypoint_learner(dls, tiny_body(), hidden=(64,32), cbs=cbs)
    return ssl_learner(dls, place_cnn(4), cbs=cbs, metrics=mae)

def run(task, method, make, seed, steps, lr):
    "Metric on the target, metric on held-out source items if there are any, milliseconds per step"
    set_seed(seed, reproducible=True)
    learn = learner(task, method, data(task, seed, steps, method=='target'), [*L(make()), CPUTime()])
    learn.ssl_step.forward = 'joint'         # batch norms see both domains together, as when adapt.csv was made
    with quiet(learn):
        learn.fit_one_cycle(10, lr)
        value,ms = learn.recorder.values[-1][2],1000*learn.cpu_time.s/steps
        source = learn.validate(ds_idx=2)[1] if len(learn.dls.loaders)>2 else np.nan
    scale = 1 if task=='shapes' else 100
    return scale*float(value),scale*float(source),ms

def table(task, df):
    "Print mean ± sd of each method"
    d = 4 if task=='shapes' else 1
    name = dict(digits='accuracy %', shapes='error', figures='PCK %')[task]
    pm = lambda s: f'{s.mean():.{d}f} ± {s.std():.{d}f}' if s.notna().all() else ''
    base = df[df.method=='source'].set_index('seed')
    print(f"\n{task+', target '+name:<32}{'':>3}{'over source':>22}{'on the source':>18}{'step':>7}   seeds")
    for (m,i),o in df.groupby(['method','candidate'], sort=False):
        s = o.set_index('seed'); up = s.value-base.value.reindex(s.index); r = (s.ms/base.ms.reindex(s.index)).median()
        print(f"{m+(f'[{i}]' if df[df.method==m].candidate.nunique()>1 else ''):<20}{pm(s.value):>15}{pm(up):>22}{pm(s.source):>18}{r:>6.2f}x   {len(s)}")

@call_parse
def main(
    tasks:str=','.join(candidates), # Tasks, separated by commas
    methods:str=None, # Methods, separated by ';'; default: all
    seeds:int=3, # Number of seeds, starting at 0, or at 100 with --tune
    csv:str=str(Path(__file__).parent/'adapt.csv'), # File of the recorded runs
    tune:store_true=False # Run all candidates, on other seeds
):
    torch.set_num_threads(1)
    path = Path(csv); cols = 'task,steps,method,candidate,seed,lr,value,source,ms'.split(',')
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=cols)
    for task in tasks.split(','):
        steps,own = n_steps[task],candidates[task]
        key = [task, steps]
        todo = [(m,i,s) for s in range(100*tune, 100*tune+seeds) for m in (methods.split(';') if methods else own) for i in (range(len(own[m])) if tune else [chosen[task].get(m,0)])]
        of_task = lambda: done[(done[cols[:2]]==key).all(axis=1)]
        have = set(map(tuple, of_task()[['method','candidate','seed']].values))
        for m,i,s in todo:
            if (m,i,s) in have: continue
            r = run(task, m, own[m][i][1], s, steps, own[m][i][0])
            done = pd.concat([done, pd.DataFrame([[*key, m, i, s, own[m][i][0], *r]], columns=cols)], ignore_index=True)
            done.to_csv(path, index=False)
            print(f'{task}: {m}[{i}] seed {s}: {r[0]:.4g}', flush=True)
        df = of_task()
        table(task, df[[t in set(todo) for t in map(tuple, df[['method','candidate','seed']].values)]])
