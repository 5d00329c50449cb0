"Losses of the methods in six training steps, compared with a numpy calculation from the logits alone"
import math, pytest
from collections import Counter as Count
from helpers import *

def sm(x): e = np.exp(x-x.max(-1, keepdims=True)); return e/e.sum(-1, keepdims=True)
def N(v): return v/v.sum(-1, keepdims=True)
def ce(y, c): return -np.log(sm(y)[np.arange(len(y)), c])
def hit(p, t): return (p.max(1)>=t).astype(float)
def share(c, n=10, w=None): return np.bincount(c, weights=w, minlength=n)/len(c)
def copy_np(t): return t.detach().double().numpy().copy()

class Steps:
    "Inputs and loss of a method in each step"
    def __init__(self, cb, outputs=(), model=no_bn, **kw):
        self.rows,inner = [],cb.unsup_loss
        def unsup_loss(b):
            now = SimpleNamespace(u={v:copy_np(b.u[v]) for v in L(cb.views)}, l=copy_np(b.pred), y=b.y.numpy(), idx=b.idx.tolist(), sup=float(b.sup), pct=b.pct, net=deepcopy(cb.learn.model), rng=torch.get_rng_state())
            for o in outputs: setattr(now, o, {s:{v:copy_np(x) for v,x in vars(getattr(getattr(b,o),s)).items() if v!='_get'} for s in 'ul'})
            loss = inner(b)
            now.loss,now.x = float(loss),dict(vars(b.x.u)); self.rows.append(now)
            return loss
        cb.unsup_loss = unsup_loss
        set_seed(1); dls = mk_dls(uratio=3); dls.train.rng = random.Random(1)
        self.learn = fit(ssl_learner(dls, model(), cbs=cb, lr=.02, metrics=accuracy), 2)
        self.n_pool = dls.unlabeled.n
        assert len(self.rows)==6
    def check(self, f):
        "`f` gives the loss of each step, which is not always 0"
        want = [f(r) for r in self.rows]
        close([r.loss for r in self.rows], want, 2e-5)
        assert max(map(abs, want))>1e-4
low = .14

def test_pseudo_label():
    def f(r): y = r.u['weak']; return (hit(sm(y), low)*ce(y, y.argmax(1))).mean()
    Steps(PseudoLabelCallback(low)).check(f)

def test_pi_model(): Steps(PiModelCallback(weight=1.)).check(lambda r: ((sm(r.u['weak'])-sm(r.u['weak2']))**2).sum(1).mean())

def averaged(rows, decay=.9):
    "Predictions of the averaged teacher in each step, from the students alone"
    t = deepcopy(rows[0].net)
    for n,r in enumerate(rows):
        if n:
            a = min(decay, n/(9+n))
            for p,q in zip(t.parameters(), r.net.parameters()): p.data = a*p.data+(1-a)*q.data
        r.t = sm(copy_np(t(r.x['weak2'])))
def test_mean_teacher():
    for student in ('weak','strong'):
        s = Steps(MeanTeacherCallback(.9, weight=1., student_view=student)); averaged(s.rows)
        s.check(lambda r: ((sm(r.u[student])-r.t)**2).sum(1).mean())
def test_self_ensemble():
    s = Steps(SelfEnsembleCallback(low, balance=.1, teacher_decay=.9)); averaged(s.rows)
    def f(r):
        p,k = sm(r.u['strong']),hit(r.t, low); m = p.mean(0)
        return (((p-r.t)**2).sum(1)*k).mean()+.1*k.mean()*-(.1*np.log(m)+.9*np.log(1-m)).mean()
    s.check(f)

def test_uda():
    def f(r):
        p,s = sm(r.u['weak']),np.log(sm(r.u['strong'])); q,k = N(p**(1/.4)),hit(p, low)
        return ((q*(np.log(q)-s)).sum(1)*k).sum()/max(k.sum(), 1)
    Steps(UDACallback(low)).check(f)

def test_mcc():
    def f(r):
        P = sm(r.u['weak']/2.5); H = -(P*np.log(P+1e-5)).sum(1); w = len(P)*(1+np.exp(-H))/(1+np.exp(-H)).sum()
        M = P.T@np.diag(w)@P; M = M/M.sum(1)
        return (M.sum()-np.trace(M))/10
    Steps(MCCCallback()).check(f)

def test_fixmatch(): Steps(FixMatchCallback(low)).check(lambda r: (hit(sm(r.u['weak']), low)*ce(r.u['strong'], r.u['weak'].argmax(1))).mean())
def test_fixmatch_soft():
    def f(r): p = sm(r.u['weak']); return (hit(p, low)*-(N(p**2)*np.log(sm(r.u['strong']))).sum(1)).mean()
    Steps(FixMatchCallback(low, hard=False)).check(f)
def test_fixmatch_aligned():
    goal = mean = np.full(10, .1)
    def f(r):
        nonlocal goal,mean
        p = sm(r.u['weak']); goal,mean = .5*goal+.5*share(r.y),.5*mean+.5*p.mean(0)
        q = N(p*goal/mean)
        return (hit(q, .2)*ce(r.u['strong'], q.argmax(1))).mean()
    Steps(FixMatchCallback(.2, align=DistributionAlignment('labels', .5))).check(f)
def test_fixmatch_adjusted():
    mean = np.full(10, .1)
    def f(r):
        nonlocal mean
        mean = .5*mean+.5*sm(r.u['weak']).mean(0); y = r.u['weak']-np.log(mean)
        return (hit(sm(y), low)*ce(r.u['strong']+np.log(mean), y.argmax(1))).mean()
    Steps(FixMatchCallback(low, adjust=LogitAdjustment(decay=.5))).check(f)

@pytest.mark.parametrize('warmup', [True, False])
@pytest.mark.parametrize('mapping,M', [('linear', lambda x: x), ('convex', lambda x: x/(2-x)), ('concave', lambda x: math.log(1+x)/math.log(2))])
def test_flexmatch(warmup, mapping, M):
    s,label = Steps(FlexMatchCallback(.2, warmup, mapping)),{}
    def f(r):
        n = Count(label.values()); p = sm(r.u['weak']); c = p.argmax(1)
        most = max([*n.values(), s.n_pool-len(label) if warmup else 0, 1])
        keep = np.array([p[i,k]>=.2*M(n[k]/most) for i,k in enumerate(c)])
        for i,k in enumerate(c):
            if p[i,k]>=.2: label[r.idx[i]] = k
        return (keep*ce(r.u['strong'], c)).mean()
    s.check(f)
    assert 0<len(label)<s.n_pool

def test_freematch():
    tau,p_,h_ = .1,np.full(10, .1),np.full(10, .1)
    def f(r):
        nonlocal tau,p_,h_
        p = sm(r.u['weak']); c = p.argmax(1)
        tau,p_,h_ = .5*tau+.5*p.max(1).mean(),.5*p_+.5*p.mean(0),.5*h_+.5*share(c)
        k = (p.max(1)>=(tau*p_/p_.max())[c]).astype(float); s = sm(r.u['strong'])
        pb,hb = (s*k[:,None]).mean(0),share(s.argmax(1), w=k); on = hb>0
        a,b = N(p_/h_),N(np.where(on, pb/np.where(on, hb, 1), 0))
        return (k*ce(r.u['strong'], c)).mean()+.3*(a[on]*np.log(b[on])).sum()
    Steps(FreeMatchCallback(.5, fairness=.3)).check(f)

def test_softmatch():
    mu,var,mean = .1,1.,np.full(10, .1)
    def f(r):
        nonlocal mu,var,mean
        p = sm(r.u['weak']); mean = .5*mean+.5*p.mean(0); a = N(p*.1/mean).max(1)
        mu,var = .5*mu+.5*a.mean(),.5*var+.5*a.var(ddof=1)
        return (np.exp(-np.minimum(a-mu, 0)**2/(2*var/4))*ce(r.u['strong'], p.argmax(1))).mean()
    Steps(SoftMatchCallback(decay=.5)).check(f)

def test_adamatch():
    goal = mean = np.full(10, .1)
    def f(r):
        nonlocal goal,mean
        p,l = sm(r.u['weak']),sm(r.l); goal,mean = .5*goal+.5*l.mean(0),.5*mean+.5*p.mean(0)
        q = N(p*goal/mean)
        return (hit(q, .9*l.max(1).mean())*ce(r.u['strong'], q.argmax(1))).mean()
    Steps(AdaMatchCallback(.9, decay=.5)).check(f)

def test_dash():
    sup = []
    def f(r):
        p = sm(r.u['weak'])
        if r.pct<.3: sup.append(r.sup); return 0.
        return ((-np.log(p.max(1))<=1.0001*1.05**(-(r.pct-.3)/.1)*np.mean(sup))*ce(r.u['strong'], p.argmax(1))).mean()
    Steps(DashCallback(.3, 1.05)).check(f)
    assert len(sup)==2

def test_dst():
    def f(r):
        c,a = r.u['weak'].argmax(1),r.adv
        worst = 2*ce(a['l']['weak'], r.l.argmax(1)).mean()-np.log(np.minimum(1-sm(a['u']['weak'])[np.arange(len(c)), c]+1e-6, 1)).mean()
        return (hit(sm(r.u['weak']), low)*ce(r.pseudo['u']['strong'], c)).mean()+.5*worst
    Steps(DSTCallback(low, eta=.5, max_iters=10), ('adv','pseudo')).check(f)

def test_vat():
    def f(r):
        x,net = r.x['weak'].double(),deepcopy(r.net).double(); n = x[0].numel()
        torch.set_rng_state(r.rng); d = torch.randn_like(r.x['weak']).double()
        unit = lambda v: (v/v.flatten(1).norm(dim=1).view(-1,1,1,1)).nan_to_num()      # a row of dead units has a zero gradient
        p = net(x).softmax(1).detach(); kl = lambda z: (p*(p.log()-net(z).log_softmax(1))).sum(1)
        z = (x+.01*n**.5*unit(d)).requires_grad_()
        g = torch.autograd.grad(kl(z).sum(), z)[0]
        return float(kl(x+.1*n**.5*unit(g)).mean()+.3*-(p*p.log()).sum(1).mean())
    Steps(VATCallback()).check(f)
