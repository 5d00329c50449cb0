"Tables and texts: the methods run on fastai's tabular and text learners, with views given by the user"
import pytest, torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from helpers import *
from fastai.tabular.all import TabularDataLoaders, tabular_learner, Categorify
from fastai.text.all import AWD_LSTM, BaseTokenizer, TextBlock, awd_lstm_clas_config, text_classifier_learner

methods = dict(FixMatch=lambda: FixMatchCallback(.6), UDA=lambda: UDACallback(.6), PseudoLabel=lambda: PseudoLabelCallback(.6), MCC=MCCCallback,
    Pi=lambda: PiModelCallback(weight=1.), MeanTeacher=lambda: MeanTeacherCallback(weight=1., teacher_decay=.9))
noise = dict(Pi='pi_model_loss', MeanTeacher='mean_teacher_loss')      # their two views are equal: only dropout makes the outputs differ
each_method = pytest.mark.parametrize('method', methods)

# ------ tables
def breast_cancer():
    "30 measurements and one categorical column"
    d = load_breast_cancer(as_frame=True)
    df = d.data.copy()
    df['size'] = pd.cut(df['mean radius'], 4, labels=list('abcd')).astype(str)
    df['y'] = np.where(d.target, 'benign', 'malignant')
    return df.sample(frac=1., random_state=0).reset_index(drop=True)

def table(n_steps=4):
    set_seed(0)
    df = breast_cancer()
    test,rest = df[:150],df[150:].reset_index(drop=True)
    lab,unl = few_labels(rest.y, n_per_class=8)
    rows = pd.concat([rest.iloc[lab], test], ignore_index=True)
    conts = [c for c in df if c not in ('size','y')]
    dls = TabularDataLoaders.from_df(rows, procs=[Categorify, Normalize], cat_names=['size'], cont_names=conts, y_names='y', valid_idx=range(16, len(rows)), bs=8)
    strong = lambda cats,conts: (cats, conts+.3*torch.randn_like(conts))
    return dls.add_unlabeled(rest.iloc[unl], uratio=4, n_steps=n_steps, labels=rest.y.iloc[unl].tolist(), strong=strong)
def table_learner(cbs=None, ps=.3, n_steps=4):
    dls = table(n_steps)
    set_seed(1)
    return tabular_learner(dls, layers=[32,16], config=dict(ps=[ps,ps]), metrics=accuracy, cbs=cbs, path=tempfile.mkdtemp())

# ------ texts
def reviews(n, seed=0):
    "Synthetic reviews: some words of their class, a few of the other, most of neither"
    r,rows = np.random.default_rng(seed),[]
    for _ in range(n):
        y = int(r.integers(2))
        kinds = r.choice([y,1-y,2], p=[.3,.06,.64], size=r.integers(6, 20))
        rows.append((' '.join(f"{('good','bad','thing')[k]}{r.integers(20)}" for k in kinds), ('pos','neg')[y]))
    return pd.DataFrame(rows, columns=['text','label'])

def forget_words(x):
    "Replace a fifth of the words by the unknown token (0), but no special tokens"
    return torch.where((torch.rand(x.shape, device=x.device)<.2) & (x>8), torch.zeros_like(x), x)

def texts(n_steps=4, same_length=False):
    set_seed(0)
    df = reviews(300)
    if same_length: df['text'] = [' '.join((t.split()*3)[:12]) for t in df.text]
    lab,unl = few_labels(df.label[:200], n_per_class=8)
    rows = df.iloc[[*lab, *range(200,300)]].assign(is_valid=[False]*16+[True]*100).reset_index(drop=True)
    block = DataBlock((TextBlock.from_df('text', tok=BaseTokenizer(), min_freq=1, n_workers=1), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'), splitter=ColSplitter())
    pool = df.iloc[unl].reset_index(drop=True)
    return block.dataloaders(rows, bs=8, num_workers=0).add_unlabeled(pool, uratio=2, n_steps=n_steps, labels=pool.label.tolist(), strong=forget_words)
def text_learner(cbs=None, drop=1., n_steps=4, alpha=2., beta=1., ps=None, **kw):
    dls = texts(n_steps, **kw)
    set_seed(1)
    config = {**awd_lstm_clas_config, 'emb_sz':16, 'n_hid':16, 'n_layers':1}
    return text_classifier_learner(dls, AWD_LSTM, pretrained=False, drop_mult=drop, config=config, metrics=accuracy, cbs=cbs, loss_func=CrossEntropyLossFlat(), alpha=alpha, beta=beta, ps=ps, path=tempfile.mkdtemp())

kinds = dict(table=table_learner, text=text_learner)
each_kind = pytest.mark.parametrize('kind', kinds)

class SeeGrads(Callback):
    "Gradient norms of the unsupervised loss alone"
    order,run_valid = SSLCallback.order+.5,False
    def before_fit(self): self.norms = []
    def after_loss(self):
        b = self.learn.ssl_step.b
        own = self.learn.loss_grad-b.loss(b.pred, b.y)
        ps = [p for p in self.model.parameters() if p.requires_grad]
        self.norms.append(sum(g.norm() for g in torch.autograd.grad(own, ps, retain_graph=True, allow_unused=True) if g is not None).item())

@each_kind
@each_method
def test_a_method_learns_from_the_pool(kind, method):
    learn = kinds[kind]([methods[method](), SeeGrads()])
    start = weights(learn.model)
    fit(learn, 2)
    assert not torch.equal(weights(learn.model), start) and weights(learn.model).isfinite().all()
    ssl,norms = learn.recorder.ssl,learn.see_grads.norms
    assert all(len(v)==8 for v in ssl.values()) and len(norms)==8
    assert max(norms)>1e-4
    if method in noise: assert min(ssl[noise[method]])>0 and min(norms)>0
    assert learn.get_preds()[0].shape==(len(learn.dls.valid_ds), 2)

@each_kind
def test_pseudo_labels_and_export(kind):
    learn = fit(kinds[kind](FixMatchCallback(.6)))
    items,valid = learn.dls.unlabeled.items,learn.dls.test_dl(learn.dls.unlabeled.items)
    with quiet(learn): df,(p,_) = learn.pseudo_labels(),learn.get_preds(dl=valid)
    close(df.confidence.to_numpy(), p.max(1)[0], 1e-4)                            # in the pool's order, not sorted by length
    names = learn.dls.vocab if kind=='table' else learn.dls.vocab[1]
    assert df.label.tolist()==[names[i] for i in p.argmax(1)] and df.truth.tolist()==items['y' if kind=='table' else 'label'].tolist()
    learn.export()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(learn.path/'export.pkl')
    item = items.iloc[0] if kind=='table' else items.text[0]
    with quiet(loaded), quiet(learn): close(loaded.predict(item)[2], p[0], 1e-4)

@each_kind
def test_rounds_of_self_training(kind):
    learn = kinds[kind](n_steps=20)
    with quiet(learn): table = self_train(learn, 2, 2, 1e-2, share=[.5,1.])
    assert table.kept.tolist()[1:]==[pytest.approx(learn.dls.unlabeled.n/2, abs=1), learn.dls.unlabeled.n]
    assert table.pseudo_acc[1]>.7 and weights(learn.model).isfinite().all()

# ------ the forward passes of texts
class Passes(Callback):
    "Shapes of the forward passes of each step, and their outputs"
    order,run_valid = SSLCallback.order+.5,False
    def before_fit(self): self.steps,self.out = [],[]
    def before_batch(self): self.steps.append([]); self.net = copy_model(self.model)
    def after_loss(self):
        b = self.learn.ssl_step.b
        self.out.append((self.net, b.x.l.weak.clone(), b.x.u.weak.clone(), b.x.u.strong.clone(), b.pred.detach(), b.u.weak.detach(), b.u.strong.detach(), self.loss_grad.detach(), b.y))
def passes(**kw):
    learn = text_learner([SSLStep('joint'), FixMatchCallback(.5), Passes()], drop=1e-12, alpha=0, beta=0, ps=[0.], **kw)        # dropout of almost 0; with 0, fastai's AWD_LSTM does not train
    learn.model[0].register_forward_pre_hook(lambda m,i: learn.passes.steps[-1].append(tuple(i[0].shape)) if m.training and 'steps' in vars(learn.passes) else None)
    return fit(learn).passes

def test_padded_texts_go_separately_by_themselves():
    p = passes()
    assert any([s[0] for s in step]==[8,16,16] for step in p.steps)                # three lengths, three passes
    for net,xl,uw,us,*got,loss,y in p.out:
        logits = [net.train()(x)[0] for x in (xl,uw,us)]
        if xl.shape[1]!=uw.shape[1]:
            for a,b in zip(got, logits): close(a, b.detach(), 1e-4)
        ce = F.cross_entropy(got[0], y)
        q = got[1].softmax(1).max(1)
        close(loss, ce+(F.cross_entropy(got[2], q[1], reduction='none')*(q[0]>=.5)).mean(), 1e-5)

def test_texts_of_one_length_go_together():
    p = passes(same_length=True)
    assert all([s[0] for s in step]==[40] for step in p.steps)
    net,xl,uw,us,*_ = p.out[0]
    assert (uw!=us).any() and ((uw==us) | (us==0)).all()
