"""Each loss, forward and backward, compared with the plainest PyTorch formula of its paper: `python benchmarks/losses.py [--pairs 31] [--only mcc,mdd]`

448 rows, 10, 100 and 1000 classes (features, for the metric losses), float32, one thread. The two sides run in turn, in alternating order.
Times are CPU times of the process, which other work on the machine disturbs less. A cell shows the median over the pairs of
time(fastssl)/time(formula), below 1 where fastssl is faster, and the median time of fastssl. The last table compares the whole unsupervised
loss of methods with FixMatch's, at 10, 1000 and 20,000 classes."""
import argparse, time, types
from collections import Counter
from functools import partial
import torch
import torch.nn.functional as F
from fastssl.losses.semi import *
from fastssl.losses.adapt import *
from fastssl.losses.adversarial import *
from fastssl.losses.metric import *
from fastssl.losses.distill import *
from fastssl.losses.keypoint import *
from fastssl.semi.flexmatch import *
from fastssl.semi.adaptive import FreeMatchCallback, SoftMatchCallback
from fastssl.semi.fixmatch import FixMatchCallback
from fastssl.semi.self_tuning import ClassQueue, pgc_loss

torch.set_num_threads(1)
N = 448

# The formulas, written straight from the papers
def ce(y, t): return F.cross_entropy(y, t, reduction='none')
def self_training(y, y_t):
    conf,t = y_t.detach().softmax(1).max(1)
    return (ce(y, t)*(conf>.5).float()).mean()
def l2(p1, p2): return (p1-p2).pow(2).sum(1).mean()
def balance(p): return F.binary_cross_entropy(p.mean(0), torch.full((p.shape[1],), 1/p.shape[1]))
def uda(s, w):
    q = w.detach().softmax(1)
    mask = (q.max(1)[0]>.5).float()
    return (F.kl_div((s/.85).log_softmax(1), q, reduction='none').sum(1)*mask).sum()/mask.sum().clamp(min=1)
def fixmatch_soft(w, s):
    q = w.detach().softmax(1)
    mask = (q.max(1)[0]>=.5).float()
    return (-((w.detach()/.5).softmax(1)*s.log_softmax(1)).sum(1)*mask).mean()
def defixmatch(lw, ls, uw, us, y): return (F.cross_entropy(lw, y)+F.cross_entropy(ls, y))/2+.5*(self_training(us, uw)-self_training(ls, lw))
def ent(p): return -(p*(p+1e-5).log()).sum(1).mean()
def confusion(y, T):
    P = (y/T).softmax(1)
    w = 1+(-(-(P*(P+1e-5).log()).sum(1))).exp().detach()
    w = len(P)*w/w.sum()
    M = (P*w[:,None]).T@P
    return M/M.sum(1)
def mcc(y): M = confusion(y, 2.5); return (M.sum()-M.trace())/len(M)
def cc(w, s):
    sel = (w.detach()/2.5).softmax(1).max(1)[0]>=.02
    return (confusion(w.detach()[sel], 2.5)-confusion(s[sel], 2.5)).pow(2).sum()/w.shape[1]*sel.float().mean()
def afn(f): r = f.norm(p=2, dim=1); return (r-(r.detach()+1)).pow(2).mean()
def mcd(p1, p2): return (p1-p2).abs().mean()
def mcd_ent(p): return -(p.mean(0)+1e-6).log().mean()
def log1m(y, t): return torch.log(torch.clamp(1-y.softmax(1)+1e-6, max=1.))
def mdd(ys, as_, yt, at):
    t = yt.argmax(1)
    return (-4*ce(as_, ys.argmax(1))-F.nll_loss(log1m(at, t), t, reduction='none')).mean()
def wce(yl, al, yu, au):
    t = yu.argmax(1)
    return 2*F.cross_entropy(al, yl.argmax(1))+F.nll_loss(log1m(au, t), t)
def mddr(ys, as_, yt, at): return (-F.l1_loss(as_, ys.detach(), reduction='none')+F.l1_loss(at, yt.detach(), reduction='none')).mean()
def pairs(f, y):
    D,same = torch.cdist(f, f),y[:,None]==y
    pos,neg = (D*same).max(1),D.masked_fill(same, 1e9).min(1)
    return pos.values,neg.values,pos.indices,neg.indices
def triplet(f, y): ap,an,*_ = pairs(f, y); return (ap-an+.3).relu().mean()
def soft_triplet0(f, g, y): ap,an,*_ = pairs(f, y); return -torch.stack([ap, an], 1).log_softmax(1)[:,1].mean()
def soft_triplet(f, g, y):
    ap,an,i,j = pairs(f, y)
    D = torch.cdist(g, g).detach()
    q = torch.stack([D.gather(1, i[:,None])[:,0], D.gather(1, j[:,None])[:,0]], 1).softmax(1)
    return -(q*torch.stack([ap, an], 1).log_softmax(1)).sum(1).mean()
def kd(s, t): return F.kl_div((s/2).log_softmax(1), (t.detach()/2).softmax(1), reduction='batchmean')
def soft_ce(y, t): return -(t.detach().softmax(1)*y.log_softmax(1)).sum(1).mean()
def smooth(y, t): return -((.9*F.one_hot(t, y.shape[1])+.1/y.shape[1])*y.log_softmax(1)).sum(1).mean()
def joints_mse(o, t, w): return (.5*(o-t).pow(2).flatten(2)*w[...,None]).mean()
def joints_kl(o, t, w):
    q = t.flatten(2)+1e-7
    return (F.kl_div(o.flatten(2).log_softmax(-1), q/q.sum(-1, keepdim=True), reduction='none').sum(-1)*w).mean()
def disparity(y, a, mode='max'):
    h,w = y.shape[-2:]
    at = y.detach().flatten(2).argmax(-1)[...,None,None]
    dx,dy = torch.arange(w)-at%w,torch.arange(h)[:,None]-at//w
    gt = torch.exp(-(dx**2+dy**2)/8.)*(dx.abs()<=6)*(dy.abs()<=6)
    gf = (gt.sum(1, keepdim=True)-gt).clamp(0, 1)
    return joints_kl(a, gf, torch.ones(y.shape[:2]))

# name: (fastssl, formula, inputs: l logits, p probabilities, f features, c classes, i identities)
table = dict(
    ConfidenceBasedSelfTrainingLoss=(ConfidenceBasedSelfTrainingLoss(.5), self_training, 'll'),
    L2ConsistencyLoss=(L2ConsistencyLoss(), l2, 'pp'), ClassBalanceLoss=(lambda C: ClassBalanceLoss(C), balance, 'p'),
    StrongWeakConsistencyLoss=(StrongWeakConsistencyLoss(.5, .85), uda, 'll'),
    fixmatch_consistency_loss=(partial(fixmatch_consistency_loss, p_cutoff=.5), lambda w, s: self_training(s, w), 'll'),
    fixmatch_soft=(partial(fixmatch_consistency_loss, T=.5, p_cutoff=.5, use_hard_labels=False), fixmatch_soft, 'll'),
    defixmatch_objective=(partial(defixmatch_objective, p_cutoff=.5), defixmatch, 'llllc'),
    entropy=(partial(entropy, reduction='mean'), ent, 'p'), MinimumClassConfusionLoss=(MinimumClassConfusionLoss(2.5), mcc, 'l'),
    CCConsistency=(CCConsistency(2.5, .02), cc, 'll'), AdaptiveFeatureNorm=(AdaptiveFeatureNorm(1.), afn, 'f'),
    classifier_discrepancy=(classifier_discrepancy, mcd, 'pp'), mcd_entropy=(mcd_entropy, mcd_ent, 'p'),
    ClassificationMDD=(ClassificationMarginDisparityDiscrepancy(), mdd, 'llll'), RegressionMDD=(RegressionMarginDisparityDiscrepancy(), mddr, 'ffff'),
    WorstCaseEstimationLoss=(WorstCaseEstimationLoss(2.), wce, 'llll'), TripletLoss=(TripletLoss(.3), triplet, 'fi'),
    SoftTripletLoss=(SoftTripletLoss(), soft_triplet, 'ffi'), SoftTripletLoss_margin=(SoftTripletLoss(0.), soft_triplet0, 'ffi'),
    KnowledgeDistillationLoss=(KnowledgeDistillationLoss(2.), kd, 'll'), CrossEntropyLossSoft=(CrossEntropyLossSoft(), soft_ce, 'll'),
    CrossEntropyLossLabelSmooth=(lambda C: CrossEntropyLossLabelSmooth(C), smooth, 'lc'))
by_size = 'ClassBalanceLoss', 'CrossEntropyLossLabelSmooth'

def inputs(kinds, C):
    torch.manual_seed(0)
    def _one(k):
        if k=='c': return torch.randint(0, C, (N,))
        if k=='i': return torch.arange(N)//4
        x = torch.randn(N, C)*(1 if k=='f' else 4)
        return (x.softmax(1) if k=='p' else x).requires_grad_()
    return [_one(k) for k in kinds]

def fwd_bwd(f, xs):
    leaves = [x for x in xs if x.requires_grad]
    def _f():
        out = f(*xs)
        (out[0] if isinstance(out, tuple) else out).backward()
        for x in leaves: x.grad = None
    return _f

class _View(dict): __getattr__ = dict.__getitem__

def method_step(cls, C, n_pool=50_000, **kwargs):
    "The unsupervised loss of a method on one batch of 448 rows, forward and backward, with what it logs"
    torch.manual_seed(0)
    class Method(cls):
        pct = .5
        def log(self, name, value): pass
    m = Method(**kwargs)
    for part in m.parts: part.setup(C, n_pool)
    weak,strong = torch.randn(N, C)*4,(torch.randn(N, C)*4).requires_grad_()
    b = types.SimpleNamespace(u=_View(weak=weak, strong=strong), pred=torch.randn(64, C), labels=torch.randint(0, C, (64,)), truth=None,
                              idx=torch.randint(0, n_pool, (N,)), pct=.5, n_steps=1000, memo={})
    def _f():
        m.unsup_loss(b).backward()
        strong.grad = None
    return _f

methods = dict(FlexMatch=(FlexMatchCallback, {}), FreeMatch=(FreeMatchCallback, {}), SoftMatch=(SoftMatchCallback, {}))

def compare_methods(n_pairs, wanted, sizes=(10, 1000, 20_000)):
    "Loss time of methods with adaptive thresholds, relative to FixMatch's with a fixed one"
    print('\n| loss of a method, relative to FixMatch | '+' | '.join(f'C={C}' for C in sizes)+' |\n|---|'+'---|'*len(sizes))
    for name,(cls,kwargs) in methods.items():
        if not wanted(name): continue
        row = [compare(method_step(cls, C, **kwargs), method_step(FixMatchCallback, C, threshold=.95), n_pairs) for C in sizes]
        print(f'| {name} | '+' | '.join(f'{r[0]:.2f} ({1e3*r[1]:.2f} and {1e3*r[2]:.2f} ms)' for r in row)+' |', flush=True)

def timed(f, n):
    t = time.process_time()
    for _ in range(n): f()
    return (time.process_time()-t)/n

def compare(a, b, n_pairs, least=2e-3):
    "Median over pairs of time(a)/time(b), and both median times; each side of a pair repeats for at least `least` seconds"
    for f in (a, b): timed(f, 3)
    na,nb = (max(1, round(least/timed(f, 3))) for f in (a, b))
    res = []
    for i in range(n_pairs):
        if i%2: tb = timed(b, nb); ta = timed(a, na)
        else: ta = timed(a, na); tb = timed(b, nb)
        res.append((ta/tb, ta, tb))
    return [torch.tensor(o, dtype=torch.float64).median().item() for o in zip(*res)]

def flexmatch(C, n_pool=50_000):
    "One step of the thresholds, look-up and update, and the same by counting the pool in Python"
    torch.manual_seed(0)
    pool,thr = torch.randint(-1, C, (n_pool,)),DynamicThresholdingModule(.95, False, convex_mapping, C, n_pool)
    thr.update(torch.arange(n_pool), pool>=0, pool.clamp(min=0))
    idx,sel,pl = torch.randint(0, n_pool, (N,)),torch.rand(N)>.5,torch.randint(0, C, (N,))
    def ours(): thr.get_threshold(pl); thr.update(idx, sel, pl)
    def count():
        n = Counter(pool.tolist())
        top = max(max(v for k,v in n.items() if k!=-1), 1)
        beta = torch.tensor([n[c]/top for c in range(C)])
        (.95*beta/(2-beta))[pl]
        pool[idx[sel]] = pl[sel]
    return ours, count

def queue(C, K=8, dim=64, n=64):
    "Pseudo group contrast of 64 rows, forward, backward and write, and the same by a loop over the rows"
    torch.manual_seed(0)
    m = ClassQueue(dim, C, K); q,ptr = m.queue_list.clone(),torch.zeros(C, dtype=torch.long)
    h,k,y = F.normalize(torch.randn(n, dim), dim=1).requires_grad_(),F.normalize(torch.randn(n, dim), dim=1),torch.randint(0, C, (n,))
    def loop():
        Q,rows = q.clone().view(dim, C, K),[]
        for i,c in enumerate(y.tolist()):
            neg = torch.cat([Q[:,:c], Q[:,c+1:]], 1).flatten(1)
            rows.append(torch.cat([(h[i]*k[i]).sum()[None], h[i]@Q[:,c], h[i]@neg])/.07)
        for i,c in enumerate(y.tolist()): q[:,c*K+ptr[c]] = k[i]; ptr[c] = (ptr[c]+1)%K
        target = torch.zeros(n, 1+C*K); target[:,:K+1] = 1/(K+1)
        F.kl_div(torch.stack(rows).log_softmax(1), target, reduction='batchmean').backward(); h.grad = None
    def ours(): m.loss(h, k, y).backward(); h.grad = None
    return ours, loop

def maps():
    "Heatmap losses at (32, 21, 64, 64): name → (fastssl, formula)"
    torch.manual_seed(0)
    o,t,w = torch.randn(32,21,64,64).requires_grad_(),torch.rand(32,21,64,64),torch.rand(32,21)
    rd = partial(RegressionDisparity(PseudoLabelGenerator2d(21), JointsKLLoss(epsilon=1e-7)), mode='max')
    return {n:(fwd_bwd(a, xs), fwd_bwd(b, xs)) for n,a,b,xs in (
        ('JointsMSELoss', JointsMSELoss(), joints_mse, [o,t,w]), ('JointsKLLoss', JointsKLLoss(epsilon=1e-7), joints_kl, [o,t,w]), ('RegressionDisparity', rd, disparity, [t,o]))}

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--pairs', type=int, default=31); p.add_argument('--only', default='')
    args = p.parse_args()
    def wanted(name): return not args.only or any(o.lower() in name.lower() for o in args.only.split(','))
    def cell(r): return f'{r[0]:5.2f} {1e3*r[1]:9.3f} ms'
    sizes,worst = (10, 100, 1000),[]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {args.pairs} pairs\n")
    print(f"| {'ratio to the plain formula, time':32} | " + ' | '.join(f'{f"C={C}":>18}' for C in sizes) + ' |\n|' + '-'*34 + '|' + ('-'*20+'|')*3)
    for name,(f,plain,kinds) in table.items():
        if not wanted(name): continue
        row = []
        for C in sizes:
            xs = inputs(kinds, C)
            row.append(compare(fwd_bwd(f(C) if name in by_size else f, xs), fwd_bwd(plain, xs), args.pairs))
        worst += [(r[0], name, C) for r,C in zip(row, sizes)]
        print(f'| {name:32} | ' + ' | '.join(map(cell, row)) + ' |', flush=True)
    for name,make in (('DynamicThresholdingModule, 50,000', flexmatch), ('ClassQueue (64 rows)', queue)):
        if not wanted(name): continue
        row = [compare(*make(C), args.pairs) for C in sizes]
        print(f'| {name:32} | ' + ' | '.join(f'{1/r[0]:4.0f}x {1e3*r[1]:9.3f} ms' for r in row) + ' |  times faster', flush=True)
    for name,(a,b) in maps().items():
        if not wanted(name): continue
        r = compare(a, b, max(args.pairs//4, 3))
        worst.append((r[0], name, '64x64'))
        print(f'| {name:32} | {cell(r)} | (32, 21, 64, 64)', flush=True)
    compare_methods(args.pairs, wanted)
    slow = [o for o in worst if o[0]>1.2]
    print('\nslower than 1.2 times the formula: ' + (', '.join(f'{n} at {C} ({r:.2f})' for r,n,C in slow) or 'none'))
