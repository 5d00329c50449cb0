"""What a fit step with `FixMatchCallback` costs compared with a hand-written PyTorch loop of the same work, and what its parts cost.

`python benchmarks/step.py` prints medians of paired repetitions in one process, on one thread. The hand-written loop draws the same batches
by `index_select`, makes the same views, and runs the same forward pass, loss and optimizer step. It has no progress bar, metrics or schedule."""
import tempfile, warnings
warnings.filterwarnings('ignore')
import timm
from fastcore.script import call_parse
from timing import paired
from fastai.vision.all import *
from fastssl.all import *

def row(what, ours, other): print(f'{what:<84}{ours:>10.3f}{other:>10.3f}{ours/other:>8.2f}', flush=True)

def fit_step(name, net, steps, reps):
    "A step of `Learner.fit`, and one of the loop"
    dls = digits_dls(n_steps=steps)
    cb = FixMatchCallback(preset='paper')                                # one pass for all rows and a fixed threshold, as in the loop
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), cbs=cb, opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    pool,views,raw = dls.pool,dls.view_maker,dls.pool.labeled_rows
    mine = deepcopy(net).train()
    opt = torch.optim.SGD(mine.parameters(), lr=1e-3)
    plain = lambda t: t.as_subclass(Tensor)
    def loop():
        for _ in range(steps):
            i,j = torch.randperm(40),torch.randint(pool.n, (pool.bs,))
            x,y,u = raw[0].index_select(0, i),plain(raw[1].index_select(0, i)),(pool.tensors[0].index_select(0, j),)
            xs = [plain(views('weak', (x,))[0]), plain(views('weak', u)[0]), plain(views('strong', u)[0])]
            l,w,s = mine(torch.cat(xs)).split([len(o) for o in xs])
            c,t = w.detach().softmax(1).max(1)
            loss = F.cross_entropy(l, y)+(F.cross_entropy(s, t, reduction='none')*(c>=.95)).mean()
            loss.backward(); opt.step(); opt.zero_grad()
    def fit():
        learn.dls.valid.n = 1                                            # validation is not part of the comparison
        with quiet(learn): learn.fit(1, 1e-3)
    t = paired(dict(ours=fit, loop=loop), reps)
    row(f'fit step, {name}', t['ours']/steps, t['loop']/steps)

class Reverse(torch.autograd.Function):
    "A hand-written gradient reversal"
    @staticmethod
    def forward(ctx, x, c): ctx.c = c; return x.view_as(x)
    @staticmethod
    def backward(ctx, g): return -ctx.c*g, None

def adversarial_step(name, net, steps, reps, several=False):
    "A step of `Learner.fit` with MDD, or MCD's six optimizer steps, and one of a loop: 36 rows per side"
    dls = digits_dls(bs=36, uratio=1, n_steps=steps)
    cb = MCDCallback() if several else MDDCallback(max_iters=1000)
    sgd = partial(torch.optim.SGD, momentum=.9)
    learn = ssl_learner(dls, net, cbs=cb, opt_func=partial(OptimWrapper, opt=sgd))
    pool,views,raw = dls.pool,dls.view_maker,dls.pool.labeled_rows
    mine = deepcopy(learn.model).train()
    G,H = torch.optim.SGD([*mine.body.parameters(), *mine.neck.parameters()], lr=1e-3, momentum=0. if several else .9),sgd([*mine.head.parameters(), *mine.heads.parameters()], lr=1e-3)
    plain = lambda t: t.as_subclass(Tensor)
    def batch():
        i,j = torch.randperm(36),torch.randint(pool.n, (36,))
        return torch.cat([plain(views('weak', (raw[0].index_select(0, i),))[0]), plain(views('weak', (pool.tensors[0].index_select(0, j),))[0])]),plain(raw[1].index_select(0, i))
    def step(loss, *opts):
        G.zero_grad(); H.zero_grad(); loss.backward()
        for o in opts: o.step()
    def mdd_loop():
        for n in range(steps):
            x,y = batch()
            f = mine.neck(mine.body(x))
            out,adv = mine.head(f),mine.heads.adv[1](Reverse.apply(f, .2/(1+math.exp(-n/1000))-.1))
            c = out.detach().argmax(1)
            other = 1-adv[36:].softmax(1).gather(1, c[36:,None])+1e-6
            step(F.cross_entropy(out[:36], y)+4*F.cross_entropy(adv[:36], c[:36])-other.clamp(max=1).log().mean(), G, H)
    def losses(x, y):
        a,b = mine(x)
        p,q = a[36:].softmax(1),b[36:].softmax(1)
        balance = -(p.mean(0)+1e-6).log().mean()-(q.mean(0)+1e-6).log().mean()
        return F.cross_entropy(a[:36], y)+F.cross_entropy(b[:36], y)+.01*balance,(p-q).abs().mean()
    def mcd_loop():
        for _ in range(steps):
            x,y = batch()
            step(losses(x, y)[0], G, H)
            a,d = losses(x, y); step(a-d, H)
            for _ in range(4): step(losses(x, y)[1], G)
    def fit():
        learn.dls.valid.n = 1
        with quiet(learn): learn.fit(1, 1e-3)
    t = paired(dict(ours=fit, loop=mcd_loop if several else mdd_loop), reps)
    row(f'fit step, {"MCD, six optimizer steps" if several else "MDD"}, {name}', t['ours']/steps, t['loop']/steps)

class Silent(FixMatchCallback):
    "FixMatch without logging"
    def log(self, name, value): pass

def reports(name, net, steps, reps):
    "A step with all reports and the check for NaN, and one without: no columns, nothing logged"
    learns = {}
    for k,cb in dict(ours=FixMatchCallback(), bare=Silent()).items():
        set_seed(0)
        learns[k] = learn = Learner(digits_dls(n_steps=steps), deepcopy(net), loss_func=CrossEntropyLossFlat(), cbs=cb)
        learn.dls.valid.n = 1
    learns['bare'].remove_cbs(learns['bare'].cbs.filter(risinstance((SSLRecorder,StopOnNaN))))
    def fit(learn):
        with quiet(learn): learn.fit(1, 1e-3)
    t = paired({k:partial(fit, l) for k,l in learns.items()}, reps)
    row(f'reports, {name}: a step with them, against one without', t['ours']/steps, t['bare']/steps)

def memory(net, size):
    "MiB that a step keeps for the backward pass, the largest part of its memory, by the views in the forward pass"
    def saved(cbs):
        learn = Learner(digits_dls(n_steps=1, size=size), deepcopy(net), loss_func=CrossEntropyLossFlat(), cbs=cbs)
        learn.dls.valid.n,seen = 1,{}
        def pack(t):
            if t.grad_fn is not None or t.dtype.is_floating_point: seen[t.data_ptr()] = max(seen.get(t.data_ptr(), 0), t.numel()*t.element_size())
            return t
        with quiet(learn), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): learn.fit(1, 1e-3)
        return sum(seen.values())/2**20
    plain = saved([SSLStep()])
    for what,cbs in (('40 labeled rows', [SSLStep()]), ('40 labeled, 280 strong, 280 weak without gradient', [SSLStep('no_grad'), FixMatchCallback()]), ('40 labeled, 280 strong, 280 weak', [FixMatchCallback()])):
        row(f'MiB kept in a step, {size} px: {what}', saved(cbs), plain)

def ema(net, reps):
    t = EMATeacher(net, .999, buffers='copy')
    slow = deepcopy(net)
    @torch.no_grad()
    def loop():
        for a,b in zip(slow.parameters(), net.parameters()): a.data.mul_(.999).add_(b.data, alpha=.001)
        for a,b in zip(slow.buffers(), net.buffers()): a.copy_(b)
    r = paired(dict(ours=t.update, loop=loop), reps)
    row(f'EMA update, {len(list(net.parameters()))} tensors, against a loop over parameters', r['ours'], r['loop'])

def loaders(reps):
    "A batch of 448 images of 32 px, from memory and from PNG files"
    X = np.random.default_rng(0).integers(0, 256, (2000,32,32,3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as d:
        for i,x in enumerate(X): Image.fromarray(x).save(f'{d}/{i}.png')
        files = get_image_files(d)
        mk = lambda **kw: DataBlock((ImageBlock, CategoryBlock(vocab=[0,1])), get_y=lambda f: int(f.stem)%2).dataloaders(files[:100], bs=64, num_workers=0).add_unlabeled(files, bs=448, **kw).unlabeled.forever()
        a,b = mk(in_memory=True),mk()
        t = paired(dict(ours=lambda: next(a), files=lambda: next(b)), reps)
    row('batch of 448 images, 32 px: in memory, against files', t['ours'], t['files'])

@call_parse
def main(
    steps:int=30, # Steps per repetition
    reps:int=7 # Repetitions
):
    torch.set_num_threads(1)
    print(f'{"":<84}{"fastssl":>10}{"other":>10}{"ratio":>8}\n{"milliseconds":<84}')
    set_seed(0)
    fit_step('tiny: linear', nn.Sequential(nn.Flatten(), nn.Linear(64,10)), steps, reps)
    fit_step('small CNN', tiny_cnn(), steps, reps)
    adversarial_step('small CNN', tiny_cnn(), 3*steps, reps)
    adversarial_step('ResNet-18', timm.create_model('resnet18', in_chans=1, num_classes=10), steps, reps)
    adversarial_step('small CNN', tiny_cnn(), steps//3, reps, several=True)
    ema(tiny_cnn(), 20*reps)
    ema(timm.create_model('resnet18', num_classes=10), 5*reps)
    loaders(reps)
    reports('tiny: linear', nn.Sequential(nn.Flatten(), nn.Linear(64,10)), steps, 5*reps)
    reports('small CNN', tiny_cnn(), steps, 3*reps)
    print('MiB')
    memory(tiny_cnn(), 32)
