"""Speedrun of semi-supervised learning on CIFAR-10: 250 labels, one GPU. One flat file; it does not use fastssl.

`python benchmarks/speedrun_cifar.py cifar10_train.npz` runs the category *CIFAR-10, 250 labels, 90 %* on splits 200 to 204 with two seeds each, 60 seconds a run, and appends each run to `speedrun.csv`. Rules and records are in
`records.md`. `--split 100 --seconds 60 --curve` prints a curve of one run on a split for settings, and writes nothing. The archive holds the 50,000 training images only: each split holds out 5,000 of them as test images
(`speedrun_cifar_splits.json`). `--smoke` runs all code on the CPU in seconds, `--set width=128 start_share=.5` changes settings, `--set w_pseudo=0` is labels alone.

Pseudo-labels are targets of the strong views: the average network's predictions are averaged into them at each visit of a row, and they count by their confidence (Chen et al. 2023). That is all with `--start none`. With `--start ssl`, the
network learns features without labels first: the strong view of an image shall be as near to the other images as the weak view is, by the average of the weights (Zheng et al. 2021, Denize et al. 2023); labels are spread over the graph of
nearest neighbors of these features, and pseudo-labels start from there. `--start joint` has both losses from the first step on and spreads labels on the way. The whole step is one CUDA graph: views, passes, losses, Muon, averages.
The average of the weights is what is tested."""
import argparse, base64, csv, datetime, io, json, math, time, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

here = Path(__file__).parent
settings = dict(
    start='none',           # 'ssl': features first, 'none': pseudo-labels from the first step, 'joint': both from the first step
    start_share=.4,         # part of the time for features, with start='ssl'
    start_batch=1024,       # unlabeled rows per step while features are learned
    batches=(640,1280),     # unlabeled rows per step of the second part, in equal parts of its time
    n_labeled=128,          # labeled rows per step
    width=64, widths=(1,4,4), depth=2,      # channels of the three blocks: width times widths; convolutions per block
    lr=.1, lr_adam=.01, momentum=.9,       # Muon for matrices (relative to their norm), Adam for norms and the head
    warmup=100,             # steps
    lr_end=.3,              # part of the learning rate at the end of the first part
    ema=.99,                # decay of the average
    w_pseudo=1., w_contrast=1., w_contrast_end=.1, w_label_start=.3,
    temperature=.1, temperature_teacher=.05, own=.5, queue=4096,    # contrast: `own` is the part of the target on the image itself
    keep=.8, keep_none=.5,  # part of a row's target that is kept at a visit, with labels spread at first and without
    power=2.,               # targets are sharpened by this power
    spreads=2,              # how often labels are spread again in the second part
    n_neighbors=15, alpha=.97,
    area_start=.25, area=.4, cut_start=0., cut=14.,     # least area of a crop, most pixels of a cut side, in the two parts
    angle=.25, color=.5, hue=.1, gray=.15,
    shift=4,                # pixels of the weak view
    tta=True,               # test on six views
    reserve=.7,             # seconds for the end: statistics of norms and the test
    compile=False)          # torch.compile for views and networks; its time counts
least = dict(start_batch=48, batches=(32,64), n_labeled=32, width=8, warmup=3, queue=128)   # --smoke
starts = 'ssl','none','joint'
mean,std = (.4914,.4822,.4465),(.2470,.2435,.2616)
columns = 'lr,c1,c2,w_label,w_pseudo,w_contrast,ema,keep,area,cut'.split(',')               # what a step reads

# ------ data

def bits(s): return np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(s)), np.uint8)).nonzero()[0]

def make_splits(path, splits=(100,101,102,200,201,202,203,204), per_class=25, n_test=500):
    "Write test and labeled rows by split, as many for each class: `speedrun_cifar_splits.json` was made by it"
    y,res = np.load(path)['label'],{}
    for s in splits:
        rng = np.random.default_rng(s)
        rows = [rng.permutation(np.flatnonzero(y==c)) for c in range(10)]
        is_test = np.zeros(len(y), bool)
        is_test[np.concatenate([r[:n_test] for r in rows])] = True
        labeled = np.concatenate([r[n_test:n_test+per_class] for r in rows])
        res[s] = dict(test=base64.b64encode(zlib.compress(np.packbits(is_test).tobytes(), 9)).decode(), labeled=labeled.tolist())
    (here/'speedrun_cifar_splits.json').write_text('{'+',\n'.join(f'"{k}": {json.dumps(v)}' for k,v in res.items())+'}\n')

def archive(path):
    "All images, uint8 n×32×32×3, and labels"
    from PIL import Image
    z = np.load(path)
    jpeg,offset = z['jpeg'],z['offset']
    x = np.empty((len(offset)-1,32,32,3), np.uint8)
    def read(start):
        for i in range(start, min(start+500, len(x))): x[i] = np.asarray(Image.open(io.BytesIO(jpeg[offset[i]:offset[i+1]].tobytes())).convert('RGB'))
    with ThreadPoolExecutor() as pool: list(pool.map(read, range(0, len(x), 500)))
    return x,z['label'].astype(np.int64)

def made_up(n=1200):
    "Images of ten colors with noise, for --smoke"
    rng = np.random.default_rng(0)
    y = np.arange(n)%10
    color = rng.integers(40, 215, (10,1,1,3))
    x = (color[y]+rng.normal(0, 30, (n,32,32,3))).clip(0, 255).astype(np.uint8)
    return x,y

def rows_of(x, y, split, n_pool=None):
    "Rows of labeled, pool (shuffled, labeled rows included) and test images"
    f = json.loads((here/'speedrun_cifar_splits.json').read_text())[str(split)]
    labeled,test = np.array(f['labeled']),bits(f['test'])
    pool = np.random.default_rng(split).permutation(np.setdiff1d(np.arange(len(y)), test))
    if n_pool: pool = np.union1d(labeled, pool[:n_pool])
    return labeled,np.random.default_rng(split+1).permutation(pool),test

# ------ views: bytes to normalized images, channels last, one draw for each image

class Views(nn.Module):
    def __init__(self, x, o, dtype):
        super().__init__()
        self.o,self.dtype = o,dtype
        self.register_buffer('x', x)                                        # uint8 n×32×32×3
        self.register_buffer('side', torch.arange(32, device=x.device))
        for name,v in (('mean',mean), ('std',std), ('luma',(.299,.587,.114))): self.register_buffer(name, torch.tensor(v, device=x.device))
        self.register_buffer('eye', torch.eye(3, device=x.device))
        cross = torch.tensor([[0.,-1,1],[1,0,-1],[-1,1,0]], device=x.device)/3**.5
        self.register_buffer('cross', cross)                                # turns colors around gray

    def crop(self, rows, flip, dy, dx):
        "Images moved by `dy`, `dx` pixels, reflected at the border, flipped where `flip` is 1"
        r = self.side+dy[:,None]
        c = torch.where(flip[:,None]==1, 31-self.side, self.side)+dx[:,None]
        r,c = (31-(31-v.abs()).abs() for v in (r,c))
        x = self.x[rows[:,None,None], r[:,:,None], c[:,None,:]]
        return ((x.float()/255-self.mean)/self.std).to(self.dtype).permute(0,3,1,2)

    def weak(self, rows, flip=None):
        n,s = len(rows),self.o.shift
        d = torch.randint(-s, s+1, (2,n), device=rows.device)
        if flip is None: flip = torch.randint(0, 2, (n,), device=rows.device)
        return self.crop(rows, flip, d[0], d[1])

    def plain(self, rows, flip=0, d=0):
        v = torch.zeros_like(rows)
        return self.crop(rows, v+flip, v+d, v+d)

    def strong(self, rows, area, cut):
        "Crops of at least this `area`, turned, flipped, with other colors, and a box of at most `cut` pixels cut out"
        n,o = len(rows),self.o
        x = self.x[rows].permute(0,3,1,2).float()/255
        r = torch.rand(16, n, device=rows.device)
        sign = r*2-1
        size = (area+(1-area)*r[0]).sqrt()
        ratio = (sign[1]*.29).exp()                                         # sides 3:4 to 4:3
        sx,sy = (size*ratio).clamp(max=1),(size/ratio).clamp(max=1)
        tx,ty = sign[2]*(1-sx+.1),sign[3]*(1-sy+.1)
        a = sign[4]*o.angle
        sx = torch.where(r[5]<.5, -sx, sx)
        theta = torch.stack([sx*a.cos(), -sy*a.sin(), tx, sx*a.sin(), sy*a.cos(), ty], 1).view(n,2,3)
        x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False, padding_mode='reflection')
        # colors: saturation, hue, contrast and brightness are one map of the three channels
        on = (r[6]<.8).float()*o.color
        bright,contrast,sat = 1+sign[7]*on,1+sign[8]*on,1+sign[9]*on
        sat = torch.where(r[10]<o.gray, torch.zeros_like(sat), sat)[:,None,None]
        h = (sign[11]*o.hue*2*math.pi*on.sign())[:,None,None]
        turn = h.cos()*self.eye+(1-h.cos())/3+h.sin()*self.cross
        m = (sat*self.eye+(1-sat)*self.luma)@turn*(contrast*bright)[:,None,None]
        gray = (x.mean((2,3))*self.luma).sum(1)
        b = ((1-contrast)*gray*bright)[:,None,None]
        x = torch.baddbmm(b, m, x.flatten(2)).clamp(0, 1).view(n,3,32,32)
        x = (x-self.mean.view(3,1,1))/self.std.view(3,1,1)
        half = (r[12]*cut/2)[:,None]
        inside = [(self.side+.5-r[k][:,None]*32).abs()<half for k in (13,14)]
        x = x.masked_fill((inside[0][:,:,None]&inside[1][:,None])[:,None], 0)
        return x.to(self.dtype, memory_format=torch.channels_last)

# ------ network

class Norm(nn.Module):
    "Batch norm without scale. It uses statistics of the batch; after `refresh` those of the pool"
    def __init__(self, n):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n))
        self.register_buffer('ones', torch.ones(n))
        self.register_buffer('mean', torch.zeros(n))
        self.register_buffer('var', torch.ones(n))
        self.seen = -1                                                      # batches of statistics, or -1: none are kept
    def forward(self, x):
        if not self.training: return F.batch_norm(x, self.mean, self.var, self.ones, self.bias, False, 0.)
        if self.seen<0: return F.batch_norm(x, None, None, self.ones, self.bias, True, 0.)
        self.seen += 1
        return F.batch_norm(x, self.mean, self.var, self.ones, self.bias, True, 1/self.seen)

class Conv(nn.Conv2d):
    "3×3 without bias: weights are float32 and used in the dtype of the images"
    def __init__(self, ni, nf):
        super().__init__(ni, nf, 3, padding=1, bias=False)
        if nf>=ni: nn.init.dirac_(self.weight.data[:ni])
    def forward(self, x): return F.conv2d(x, self.weight.to(x.dtype), padding=1)

class Linear(nn.Linear):
    def forward(self, x): return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

class Block(nn.Module):
    def __init__(self, ni, nf, depth):
        super().__init__()
        self.convs = nn.ModuleList([Conv(ni if k==0 else nf, nf) for k in range(depth)])
        self.norms = nn.ModuleList([Norm(nf) for _ in range(depth)])
    def forward(self, x):
        for k,(conv,norm) in enumerate(zip(self.convs, self.norms)):
            y = conv(x)
            if k==0: y = F.max_pool2d(y, 2)
            y = F.gelu(norm(y))
            x = x+y if k==2 else y
        return x

class Net(nn.Module):
    "Whitened 2×2 patches, three blocks; features, logits and, unless start is 'none', an embedding for the contrast"
    def __init__(self, o, whiten):
        super().__init__()
        w = [o.width*k for k in o.widths]
        self.register_buffer('whiten', whiten)
        self.shift = nn.Parameter(torch.zeros(len(whiten)))
        self.blocks = nn.Sequential(*[Block(ni, nf, o.depth) for ni,nf in zip([len(whiten)]+w, w)])
        self.head = Linear(w[-1], 10)
        nn.init.zeros_(self.head.bias)
        if o.start!='none': self.hidden,self.out,self.norm = Conv1(w[-1], w[-1]),Conv1(w[-1], min(128, w[-1])),Norm(w[-1])
    def features(self, x):
        x = F.gelu(F.conv2d(x, self.whiten.to(x.dtype), self.shift.to(x.dtype)))
        return self.blocks(x).mean((2,3))
    def embed(self, f): return F.normalize(self.out(F.gelu(self.norm(self.hidden(f)))).float(), dim=1)
    def forward(self, x): return self.head(self.features(x)).float()

class Conv1(nn.Module):
    "A matrix without bias"
    def __init__(self, ni, nf):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nf, ni)/ni**.5)
    def forward(self, x): return F.linear(x, self.weight.to(x.dtype))

def whitening(x):
    "Filters of 2×2 patches with uncorrelated outputs of variance 1, and their negatives: float images n×3×32×32"
    p = F.unfold(x.float(), 2).transpose(1,2).reshape(-1, 12)
    values,vectors = torch.linalg.eigh(((p.T@p)/len(p)).cpu())
    w = (vectors/(values+5e-4).sqrt()).T.reshape(12,3,2,2).to(x.device)
    return torch.cat([w, -w]).contiguous(memory_format=torch.channels_last)

# ------ optimizer

def orthogonal(g, steps=4):
    "Nearest orthogonal matrices, about, by Newton-Schulz iterations (Jordan et al. 2024): batch×m×n, m≤n"
    x = g/(g.norm(dim=(1,2), keepdim=True)+1e-7)
    if g.is_cuda: x = x.bfloat16()
    for _ in range(steps):
        a = torch.bmm(x, x.mT)
        a = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, a, x, beta=3.4445)
    return x.float()

class Optimizer:
    "Muon for weights of convolutions and of the embedding, which are scaled to one norm; Adam for the rest"
    def __init__(self, net, o):
        self.o = o
        self.matrices = [p for n,p in net.named_parameters() if p.ndim>1 and 'head' not in n]
        self.others = [p for n,p in net.named_parameters() if p.ndim==1 or 'head' in n]
        self.params = self.matrices+self.others
        self.velocity = [torch.zeros_like(p) for p in self.matrices]
        flat = torch.cat([p.detach().flatten() for p in self.others])
        self.m,self.v = torch.zeros_like(flat),torch.zeros_like(flat)
        self.sizes = [p.numel() for p in self.others]
        self.groups = {}
        for i,p in enumerate(self.matrices): self.groups.setdefault((len(p), p[0].numel()), []).append(i)

    @torch.no_grad()
    def step(self, grads, lr, c1, c2):
        g,rest = list(grads[:len(self.matrices)]),grads[len(self.matrices):]
        torch._foreach_mul_(self.velocity, self.o.momentum)
        torch._foreach_add_(self.velocity, g)
        g = torch._foreach_add(g, self.velocity, alpha=self.o.momentum)
        for (nf,n),ids in self.groups.items():
            u = torch.stack([g[i].reshape(nf, n) for i in ids])
            u = orthogonal(u) if nf<=n else orthogonal(u.mT).mT
            for i,d in zip(ids, u):
                p = self.matrices[i]
                p.mul_(nf**.5/p.norm())
                p.sub_(d.reshape(p.shape)*(lr*self.o.lr))
        g = torch.cat([v.flatten() for v in rest])
        self.m.lerp_(g, .1)
        self.v.mul_(.99).addcmul_(g, g, value=.01)
        d = self.m*c1/((self.v*c2).sqrt()+1e-5)*(lr*self.o.lr_adam)
        torch._foreach_sub_(self.others, [v.view_as(p) for v,p in zip(d.split(self.sizes), self.others)])

# ------ labels of neighbors

@torch.no_grad()
def nearest(f, k, chunk=4096):
    "Similarities and rows of the `k` nearest neighbors by cosine: f is n×d, normalized"
    res = [(f[i:i+chunk]@f.T).topk(k+1) for i in range(0, len(f), chunk)]
    sim,near = torch.cat([r.values for r in res]),torch.cat([r.indices for r in res])
    own = near==torch.arange(len(f), device=f.device)[:,None]
    return sim.masked_fill(own, 0).clamp(min=0),near

@torch.no_grad()
def propagate(f, labeled, y, k, alpha, power, steps=60):
    "Probabilities of classes, sharpened: labels of rows `labeled` spread over the graph of neighbors (Zhou et al. 2004)"
    sim,near = nearest(f, k)
    w,flat = sim**4,near.flatten()
    def spread(z): return (w[:,:,None]*z[near]).sum(1).index_add_(0, flat, (w[:,:,None]*z[:,None]).flatten(0,1))
    scale = spread(torch.ones_like(f[:,:1])).clamp(min=1e-6).rsqrt()
    given = torch.zeros(len(f), 10, device=f.device)
    given[labeled,y] = 1
    q = given
    for _ in range(steps): q = alpha*scale*spread(scale*q)+(1-alpha)*given
    q = q.clamp(min=1e-9)
    for _ in range(5):                                  # classes of one size
        q = q/q.sum(0)
        q = q/q.sum(1, keepdim=True)
    q = sharpen(q, power)
    q[labeled] = given[labeled]
    return q

def sharpen(p, power):
    p = p**power
    return p/p.sum(1, keepdim=True)

# ------ the step

class Trainer:
    "State of a run; `step` reads and writes tensors of fixed addresses only, so that it can be recorded"
    def __init__(self, x, labeled, y, o, seed):
        device = x.device
        self.o,self.labeled,self.y = o,labeled,y
        torch.manual_seed(seed)
        dtype = torch.bfloat16 if x.is_cuda else torch.float32
        self.views = Views(x, o, dtype)
        whiten = whitening(self.views.plain(torch.randint(0, len(x), (2000,), device=device)))
        self.net,self.average = (Net(o, whiten).to(device, memory_format=torch.channels_last) for _ in range(2))
        self.average.load_state_dict(self.net.state_dict())
        self.average.requires_grad_(False)
        self.opt = Optimizer(self.net, o)
        names = {id(p):n for n,p in self.net.named_parameters()}
        of_average = dict(self.average.named_parameters())
        self.averages = [of_average[names[id(p)]] for p in self.opt.params]
        zeros = lambda *shape, dtype=torch.float32: torch.zeros(shape, device=device, dtype=dtype)
        self.target = zeros(len(x), 10)                 # of all pool rows: the labels made so far
        if o.start!='ssl': self.target += .1
        self.flip = torch.randint(0, 2, (len(x),), device=device)
        self.queue = F.normalize(torch.randn(o.queue, min(128, o.width*o.widths[-1]), device=device), dim=1)
        self.classes = zeros(10)+.1                     # mean prediction of the average network
        self.mu,self.var = zeros()+.1,zeros()+.01       # of the confidences
        self.stats = zeros(4)
        self.now = zeros(len(columns))
        self.rows = {}
        self.order,self.at = None,0
        self.fast = argparse.Namespace(net=self.net.features, average=self.average.features, weak=self.views.weak, strong=self.views.strong)
        if o.compile:                                   # in the step only: statistics of norms are kept outside of it
            from torch._inductor import config
            config.fallback_random = True
            for k,f in vars(self.fast).items(): setattr(self.fast, k, torch.compile(f, dynamic=False))

    def step(self, n):
        o,rows,fast = self.o,self.rows[n],self.fast
        now = dict(zip(columns, self.now.unbind()))
        # what the average network says of weak views
        with torch.no_grad():
            flip = 1-self.flip[rows]                    # each visit sees the other side
            self.flip.index_copy_(0, rows, flip)
            f = fast.average(fast.weak(rows, flip))
            p = self.average.head(f).float().softmax(1)
            self.classes.lerp_(p.mean(0), .02)
            p = p/self.classes
            p = p/p.sum(1, keepdim=True)
            p = self.target[rows]*now['keep']+p*(1-now['keep'])
            self.target.index_copy_(0, rows, p)
            conf = p.amax(1)
            self.mu.lerp_(conf.mean(), .02)
            self.var.lerp_((conf-self.mu).square().mean(), .02)
            weight = (-(self.mu-conf).clamp(min=0)**2/(self.var/2+1e-6)).exp()
            p = sharpen(p, o.power)
            if o.start!='none':
                keys = torch.cat([self.average.embed(f), self.queue])
                self.queue.copy_(keys[:len(self.queue)])
                near = keys[:n]@keys.T/o.temperature_teacher
                near.diagonal().fill_(-1e4)
                near = near.softmax(1)*(1-o.own)
                near.diagonal().fill_(o.own)
        # the network on strong views
        f = fast.net(fast.strong(rows, now['area'], now['cut']))
        loss_pseudo = -((self.net.head(f).float().log_softmax(1)*p).sum(1)*weight).mean()
        some = torch.rand(len(self.y), device=rows.device).topk(o.n_labeled).indices
        loss_label = F.cross_entropy(self.net.head(fast.net(fast.weak(self.labeled[some]))).float(), self.y[some])
        loss_contrast = torch.zeros_like(loss_label)
        if o.start!='none': loss_contrast = -((self.net.embed(f)@keys.T/o.temperature).log_softmax(1)*near).sum(1).mean()
        loss = now['w_label']*loss_label+now['w_pseudo']*loss_pseudo+now['w_contrast']*loss_contrast
        grads = torch.autograd.grad(loss, self.opt.params)
        self.opt.step(grads, now['lr'], now['c1'], now['c2'])
        with torch.no_grad():
            d = torch._foreach_sub([v.detach() for v in self.opt.params], self.averages)
            torch._foreach_mul_(d, 1-now['ema'])
            torch._foreach_add_(self.averages, d)
            self.stats.lerp_(torch.stack([loss_label.detach(), loss_pseudo.detach(), loss_contrast.detach(), weight.mean()]), .02)

    # outside of the recorded step

    def next_rows(self, n):
        "The next `n` rows of the pool, in a new order after each pass"
        size = len(self.target)
        if self.order is None or self.at+n>size: self.order,self.at = torch.randperm(size, device=self.target.device),0
        self.rows[n].copy_(self.order[self.at:self.at+n])
        self.at += n

    def record(self, n, table):
        "A function that does the step with `n` rows, one CUDA graph. Three steps are done on the way, on the CPU none"
        self.rows[n] = torch.zeros(n, dtype=torch.long, device=self.target.device)
        if not self.target.is_cuda: return lambda: self.step(n)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for k in range(3):
                self.next_rows(n)
                self.now.copy_(table[k])
                self.step(n)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): self.step(n)
        return graph.replay

    @torch.no_grad()
    def refresh(self, n=1000, most=None):
        "Statistics of the pool's weak views in the average network's norms"
        norms = [m for m in self.average.modules() if isinstance(m, Norm)]
        for m in norms: m.seen = 0
        for i in range(0, min(most or len(self.target), len(self.target)-n//2), n):
            self.average.features(self.views.weak(torch.arange(i, min(i+n, len(self.target)), device=self.target.device)))
        for m in norms: m.seen = -1
        self.average.eval()

    @torch.no_grad()
    def spread(self):
        "Targets of all rows from the labels, by the average network's features"
        o = self.o
        self.refresh(most=8000)
        res = []
        for i in range(0, len(self.target), 2000):
            rows = torch.arange(i, min(i+2000, len(self.target)), device=self.target.device)
            res.append(sum(self.average.features(self.views.plain(rows, flip)).float() for flip in (0,1)))
        self.average.train()
        f = torch.cat(res)
        return propagate(F.normalize(f-f.mean(0), dim=1), self.labeled, self.y, o.n_neighbors, o.alpha, o.power)

    @torch.no_grad()
    def predict(self, x):
        "Logits of the average network for images in bytes, after `refresh`"
        views,res = Views(x, self.o, self.views.dtype),[]
        at = [(flip,d,w) for flip in (0,1) for d,w in ((0,2), (-1,1), (1,1))] if self.o.tta else [(0,0,1)]
        for i in range(0, len(x), 2000):
            rows = torch.arange(i, min(i+2000, len(x)), device=x.device)
            res.append(sum(w*self.average(views.plain(rows, flip, d)) for flip,d,w in at))
        return torch.cat(res)

# ------ the run

def plan(o, pieces=4):
    "Pieces of the run: part, unlabeled rows, where it starts and ends in its part, and in the run (0 to 1)"
    parts = [('start', (o.start_batch,), 0., o.start_share)] if o.start=='ssl' else []
    parts.append(('pseudo', tuple(o.batches), o.start_share if parts else 0., 1.))
    res = []
    for name,sizes,a,b in parts:
        k = len(sizes)*pieces
        for i in range(k): res.append((name, sizes[i//pieces], i/k, (i+1)/k, a+(b-a)*(i+1)/k))
    return res

def table(o, name, u0, u1, n, done, device):
    "What `n` steps read, after `done` steps: a row for each step"
    u = u0+(u1-u0)*np.arange(n)/n
    step = done+np.arange(n)
    after = o.start=='ssl'
    first = name=='start'
    rise = np.minimum(1, u*(10 if after else 2.5))                          # of the pseudo-labels' weight
    fall = u if o.start=='joint' else rise
    c = dict(lr=(1-u*(1-o.lr_end) if first else 1-u)*np.minimum(1, (step+1)/o.warmup),
        c1=1/(1-.9**(step+1)), c2=1/(1-.99**(step+1)),
        w_label=o.w_label_start if first else 1.,
        w_pseudo=0. if first else o.w_pseudo*rise,
        w_contrast=0. if o.start=='none' else o.w_contrast if first else o.w_contrast+(o.w_contrast_end-o.w_contrast)*fall,
        ema=np.minimum(o.ema, (1+step)/(10+step)),
        keep=o.keep if after else o.keep_none,
        area=o.area_start if first else o.area, cut=o.cut_start if first else o.cut)
    return torch.tensor(np.stack([np.broadcast_to(c[k], n) for k in columns], 1), dtype=torch.float32).to(device)

class Clock:
    "Seconds of finished work, without pauses: CPU time of the process on the CPU"
    def __init__(self, device):
        self.cuda = device.type=='cuda'
        self.start = 0.
        self.start = self()
    def __call__(self):
        if self.cuda: torch.cuda.synchronize()
        return (time.perf_counter() if self.cuda else time.process_time())-self.start
    def pause(self, since): self.start += self()-since

def run(data, split, seed, o, seconds=60., steps=None, curve=False, n_pool=None, profile=False):
    """Accuracy in percent, seconds from data in memory to the test's predictions, and steps. The pool's labels are used by `curve` alone, whose time does not count.
    `steps`: as many steps, otherwise as many as `seconds` hold"""
    x,y = data
    labeled,pool,test = rows_of(x, y, split, n_pool) if len(y)==50000 else (np.arange(40), np.arange(1000), np.arange(1000, 1200))
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    pool_x,test_x = (torch.from_numpy(x[i]).to(device) for i in (pool,test))
    where = np.empty(len(y), np.int64)
    where[pool] = np.arange(len(pool))
    labeled_rows = torch.from_numpy(where[labeled]).to(device)
    labeled_y,test_y = (torch.from_numpy(y[i]).to(device) for i in (labeled,test))
    pool_y = torch.from_numpy(y[pool]).to(device) if curve else None        # for the curve's figures
    torch.backends.cudnn.benchmark = True
    if device.type=='cuda': torch.set_float32_matmul_precision('high')
    clock = Clock(device)
    t = Trainer(pool_x, labeled_rows, labeled_y, o, seed)
    if curve: print(f'{len(pool)} pool rows, {len(labeled)} labeled, {sum(p.numel() for p in t.net.parameters())/1e6:.2f} million parameters', flush=True)

    def accuracy(): return 100*(t.predict(test_x).argmax(1)==test_y).float().mean().item()
    def show(what):
        since = clock()
        t.refresh(most=8000)
        s = t.stats.tolist()
        pseudo = (t.target.argmax(1)==pool_y).float().mean().item()
        sure = t.target.amax(1)>.95
        right = ((t.target.argmax(1)==pool_y)&sure).sum().item()/max(1, sure.sum().item())
        print(f'{since:6.1f} s {done:6d} steps  {what:16s} test {accuracy():5.2f}  pseudo-labels {100*pseudo:5.2f}, over .95: {100*sure.float().mean().item():5.1f} % of rows, {100*right:5.2f} right'
              f'  weight {s[3]:.2f}  losses {s[0]:.3f} {s[1]:.3f} {s[2]:.3f}', flush=True)
        if what.startswith('start'):
            q = t.spread()
            print(f'       labels spread now: {100*(q.argmax(1)==pool_y).float().mean().item():.2f} right', flush=True)
        t.average.train()
        clock.pause(since)

    graphs,took,done,spread_at = {},{},0,0
    pieces = plan(o)
    second = [i for i,p in enumerate(pieces) if p[0]=='pseudo']
    spread = set() if o.start=='none' else {second[round(j*len(second)/(o.spreads+1))] for j in range(o.start=='joint', o.spreads+1)}
    for i,(name,n,u0,u1,end) in enumerate(pieces):
        if i in spread:
            if curve: show('before spreading')
            since,q = clock(),t.spread()
            t.target.copy_(q if i==second[0] else (t.target+q)/2)
            if curve:
                print(f'       labels spread in {clock()-since:.2f} s', flush=True)
                show('after spreading')
        n_steps = None if steps is None else max(0, round(steps*end)-done)
        if n_steps==0: continue
        early = 0
        if n not in graphs:
            early = 23 if device.type=='cuda' else 2
            if n_steps is not None: early = min(early, n_steps)
            rows = table(o, name, u0, u0, max(early, 3), done, device)
            since = clock()
            graphs[n] = t.record(n, rows)
            begin = 3 if device.type=='cuda' else 0
            if curve: print(f'       step of {n} rows recorded in {clock()-since:.2f} s', flush=True)
            since = clock()
            for k in range(begin, early):
                t.next_rows(n)
                t.now.copy_(rows[k])
                graphs[n]()
            took[n] = (clock()-since)/max(1, early-begin)
            done += max(early, begin)
            if profile and len(graphs)==1: profiled(graphs[n])
            if curve: print(f'       {1000*took[n]:.2f} ms a step of {n} rows, {n/took[n]:,.0f} rows per second', flush=True)
        m = max(0, int((end*(seconds-o.reserve)-clock())/took[n])) if n_steps is None else n_steps-early
        rows = table(o, name, u0, u1, m, done, device) if m else None
        since = clock()
        for k in range(m):
            t.next_rows(n)
            t.now.copy_(rows[k])
            graphs[n]()
        if m>=20: took[n] = (clock()-since)/m
        done += m
        if curve: show(f'{name}, {n} rows')
    t.refresh()
    logits = t.predict(test_x)
    took_all = clock()
    return 100*(logits.argmax(1)==test_y).float().mean().item(),took_all,done

def profiled(step, n=5):
    "Print what `n` steps spend their time on"
    from torch.profiler import profile, ProfilerActivity
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU]+([ProfilerActivity.CUDA] if cuda else [])) as p:
        for _ in range(n): step()
        if cuda: torch.cuda.synchronize()
    print(p.key_averages().table(sort_by='self_cuda_time_total' if cuda else 'self_cpu_time_total', row_limit=25, max_name_column_width=90), flush=True)

def log(acc, seconds, split, seed):
    file = here/'speedrun.csv'
    new = not file.exists()
    with file.open('a', newline='') as out:
        w = csv.writer(out)
        if new: w.writerow('date,category,file,split,seed,accuracy,seconds'.split(','))
        w.writerow([datetime.date.today(), 'cifar10, 250 labels', Path(__file__).name, split, seed, round(acc, 2), round(seconds, 2)])

def options(pairs, smoke=False):
    "Settings with those of `pairs`, key=value"
    o = {**settings, **(least if smoke else {})}
    for pair in pairs:
        k,_,v = pair.partition('=')
        if k not in settings: raise ValueError(f'--set {pair}: no setting {k!r}. Settings: {", ".join(settings)}')
        if isinstance(settings[k], str): o[k] = v
        elif isinstance(settings[k], bool): o[k] = v.lower() in ('1','true')
        elif isinstance(settings[k], tuple): o[k] = tuple(int(s) for s in v.split(','))
        else: o[k] = type(settings[k])(v)
    if o['start'] not in starts: raise ValueError(f"start is {o['start']!r}: one of {', '.join(starts)}")
    return argparse.Namespace(**o)

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('path', nargs='?', help='cifar10_train.npz')
    p.add_argument('--split', default='200,201,202,203,204')
    p.add_argument('--seed', default='0,1')
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--steps', type=int, help='as many steps, in place of --seconds')
    p.add_argument('--start', choices=starts)
    p.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE')
    p.add_argument('--variant', action='append', default=[], metavar='"KEY=VALUE ..."', help='settings of one more run for each split and seed, after the first; can be repeated')
    p.add_argument('--curve', action='store_true', help='print a curve; nothing is written')
    p.add_argument('--pool', type=int, help='use as many pool rows; nothing is written')
    p.add_argument('--smoke', action='store_true', help='all code on made-up images, a few steps; nothing is written')
    p.add_argument('--profile', action='store_true', help='print the kernels of a step; its time counts and nothing is written')
    p.add_argument('--make-splits', action='store_true')
    a = p.parse_args(args)
    if a.make_splits: return make_splits(a.path)
    given = a.set+([f'start={a.start}'] if a.start else [])
    runs = [(v, options(given+v.split(), a.smoke)) for v in ['']+a.variant]
    if not a.smoke and a.path is None: p.error('the path of cifar10_train.npz is missing')
    splits,seeds = ([int(v) for v in s.split(',')] for s in (a.split, a.seed))
    if a.smoke:
        a.steps = a.steps or 24
        splits,seeds = splits[:1],seeds[:1]
    if not torch.cuda.is_available(): torch.set_num_threads(1)
    data = made_up() if a.smoke else archive(a.path)
    record = torch.cuda.is_available() and not (a.curve or a.smoke or a.pool or a.profile or a.set or a.start or a.variant or a.steps)
    res = []
    for variant,o in runs:
        if variant: print(variant, flush=True)
        for split in splits:
            for seed in seeds:
                acc,seconds,steps = run(data, split, seed, o, a.seconds, a.steps, a.curve or a.smoke, a.pool, a.profile)
                res.append((acc, seconds))
                print(f'split {split}, seed {seed}: {acc:.2f} %, {seconds:.2f} s, {steps} steps', flush=True)
                if record: log(acc, seconds, split, seed)
    acc,seconds = np.array(res).T
    if len(res)>1 and len(runs)==1: print(f'{len(res)} runs: {acc.mean():.2f} % (least {acc.min():.2f}, standard error {acc.std(ddof=1)/len(acc)**.5:.2f}), {seconds.mean():.2f} s')
    return res

if __name__=='__main__': main()
