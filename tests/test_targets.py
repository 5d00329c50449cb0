"Targets that are not one class per row: the right thing, or a refusal before any step"
import pytest
from helpers import *
from fastai.text.all import TextBlock, TextDataLoaders, BaseTokenizer

X,Y = digits_data()
def image(i): return PILImageBW.create(np.asarray(X[i], dtype=np.uint8))
def tags(i): return [t for t,on in (('even', Y[i]%2==0), ('big', Y[i]>=5)) if on]
def data(block, get_y, **kw):
    blocks = DataBlock((ImageBlock(PILImageBW), block), get_x=image, get_y=get_y, splitter=IndexSplitter(range(60,80)), **kw)
    return blocks.dataloaders(list(range(80)), bs=16, num_workers=0)
def net(n, maps=False):
    body = [ConvLayer(1, 4), ConvLayer(4, 4)]
    return nn.Sequential(*body, nn.Conv2d(4, n, 1)) if maps else nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, n))
kinds = dict(
    labels = lambda: (data(MultiCategoryBlock, tags), net(2), BCEWithLogitsLossFlat()),
    number = lambda: (data(RegressionBlock, lambda i: float(Y[i])), net(1), MSELossFlat()),
    numbers = lambda: (data(RegressionBlock(n_out=3), lambda i: [float(Y[i]),1.,2.]), net(3), MSELossFlat()),
    points = lambda: (data(PointBlock, lambda i: TensorPoint.create([[1.,2.],[3.,4.]])), net(4), MSELossFlat()),
    masks = lambda: (data(MaskBlock(codes=['a','b']), lambda i: PILMask.create((np.asarray(X[i])>100).astype(np.uint8))), net(2, True), CrossEntropyLossFlat(axis=1)))
every = pytest.mark.parametrize('kind', kinds)
pool_rows = list(range(100,180))

class Steps(Callback):
    "Counts optimizer steps"
    run_valid = False
    def before_fit(self): self.n = 0
    def before_step(self): self.n += 1
def learner(kind, cbs=None, pool=True, model=None):
    set_seed(0)
    dls,m,loss = kinds[kind]()
    if pool: dls.add_unlabeled(pool_rows, uratio=2, n_steps=3)
    return Learner(dls, ifnone(model, m), loss_func=loss, cbs=[Steps(), *L(cbs)], path=Path(tempfile.mkdtemp()))
def refused(learn, f, match='needs one class per row'):
    before = weights(learn.model).clone()
    with quiet(learn), pytest.raises(ValueError, match=match): f()
    assert getattr(learn.steps, 'n', 0)==0 and torch.equal(weights(learn.model), before)

@every
def test_pseudo_labels(kind):
    learn = learner(kind)
    refused(learn, learn.pseudo_labels)
    refused(learn, lambda: learn.pseudo_labels(pool_rows[:5]))
    refused(learn, learn.show_pseudo_labels)
    learn.export('e.pkl')
    loaded = load_learner(learn.path/'e.pkl')
    with quiet(loaded), pytest.raises(ValueError, match='one class per'): loaded.pseudo_labels(pool_rows[:5])

@every
def test_self_train(kind):
    learn = learner(kind)
    refused(learn, lambda: learn.self_train(1, 1))
    refused(learn, lambda: learn.self_train(1, 1, soft=True, trained=True))
    n = net(2)
    refused(learn, lambda: learn.fit(1, cbs=SoftTargetCallback(torch.zeros(80).long())))

@every
def test_hidden_labels(kind):
    with pytest.raises(ValueError, match='hidden labels'):
        dls,*_ = kinds[kind]()
        dls.add_unlabeled(pool_rows, labels=tags if kind=='labels' else lambda i: int(Y[i]))
def test_hidden_labels_of_several_values():
    dls = digits_dls(bs=10, n_steps=2)
    for label in ([1,2], {1}, tensor([1,2]), np.array([1,2]), 1.5):
        with pytest.raises(ValueError, match='hidden labels are one class per item'): dls.add_unlabeled(dls.unlabeled.items[:3], labels=[1,label,None])
    dls.add_unlabeled(dls.unlabeled.items[:4], labels=[1,2.,None,np.float32('nan')])
    assert dls.pool.labels.tolist()==[1,2,-1,-1]

softmax_losses = pytest.mark.parametrize('loss', ['kd','mse','hard','dkd','nkd','dist'])
@every
@softmax_losses
def test_softmax_teachers(kind, loss):
    teacher = kinds[kind]()[1]
    for pool in (False,True):
        learn = learner(kind, DistillCallback(teacher, loss), pool)
        refused(learn, lambda: learn.fit(1))

@every
def test_networks_that_teach_each_other(kind):
    def two(): return TwoNetworks(kinds[kind]()[1], kinds[kind]()[1])
    learn = learner(kind, MutualLearningCallback(), model=two())
    refused(learn, lambda: learn.fit(1))
    if kind!='labels': return
    learn = fit(learner(kind, MutualLearningCallback('binary_kd'), model=two()))
    assert learn.steps.n==3 and learn.recorder.ssl['mutual_loss'][0]>0

@every
def test_distill_learner_and_born_again(kind):
    "Refused with the default loss; for several labels per item the message names the right one, which works"
    def student(loss=None):
        dls,m,loss_func = kinds[kind]()
        return distill_learner(dls, m, kinds[kind]()[1], loss, loss_func=loss_func, n_out=2, cbs=Steps(), init_head=None)
    first = learner(kind, pool=False)
    learn = student()
    refused(learn, lambda: learn.fit(1), "for several labels per item use loss='binary_kd'")
    with quiet(first), pytest.raises(ValueError, match="for several labels per item use loss='binary_kd'"): born_again(first, fit)
    if kind!='labels': return
    assert fit(student('binary_kd')).recorder.ssl['distill_loss'][0]>0
    students = born_again(first, fit, loss='binary_kd')
    assert len(students)==2 and students[1].recorder.ssl['distill_loss'][0]>0

def test_a_teacher_of_several_labels():
    "The value of the loss is that of the formula"
    set_seed(1)
    teacher,(dls,m,loss_func) = net(2),kinds['labels']()
    learn = fit(distill_learner(dls, m, teacher, 'binary_kd', loss_func=loss_func, cbs=[Steps(), Spy()], init_head=None))
    x = learn.spy.xs[0]
    with torch.no_grad(): p,q = teacher.eval()(x).sigmoid(),learn.spy.start.train()(x).sigmoid()
    kl = p*(p/q).log()+(1-p)*((1-p)/(1-q)).log()
    close(learn.recorder.ssl['distill_loss'][0], kl.sum(1).mean(), 1e-3)

def bernoulli_kl(p, q): return (p*(p/q).log()+(1-p)*((1-p)/(1-q)).log()).sum(1).mean()
def test_several_teachers_of_several_labels():
    "Probabilities of an ensemble are averaged label by label, also for a loss of your own"
    set_seed(1)
    teachers = [net(2), net(2)]
    for t in teachers: nn.init.normal_(t[-1].weight, std=3.)
    def own(s, t, y): return (s.sigmoid()-t.sigmoid()).square().sum(1)
    for loss,of in (('binary_kd', bernoulli_kl), (own, lambda p, q: (p-q).square().sum(1).mean())):
        learn = fit(learner('labels', [DistillCallback(teachers, loss, ensemble='probs'), Spy()], pool=False))
        x = learn.spy.xs[0]
        with torch.no_grad(): p,q = sum(t.eval()(x).sigmoid() for t in teachers)/2,learn.spy.start.train()(x).sigmoid()
        close(learn.recorder.ssl['distill_loss'][0], of(p, q), 1e-3)

@every
def test_a_function_is_never_refused(kind):
    "The user's own loss between the outputs"
    teacher = kinds[kind]()[1]
    learn = fit(learner(kind, DistillCallback(teacher, lambda s, t, y: (s-t).pow(2).mean()), pool=False))
    assert learn.steps.n>0 and learn.recorder.ssl['distill_loss'][0]>0

@every
@pytest.mark.parametrize('name', ssl_methods())
def test_methods_refuse(kind, name):
    if name in ('mdd','mcd','afn','dst','selftuning','mutualmeanteaching','dann','cdan'): return            # their networks are built for classes; see below
    learn = learner(kind, registered_methods[name].cls())
    with quiet(learn), pytest.raises((ValueError,TypeError)): learn.fit(1)
    assert getattr(learn.steps, 'n', 0)==0
@pytest.mark.parametrize('name', ['mdd','mcd','afn','dann','cdan','dst','selftuning','mutualmeanteaching'])
@pytest.mark.parametrize('kind', ['labels','numbers'])
def test_methods_with_heads_refuse(kind, name):
    dls,m,loss = kinds[kind]()
    dls.add_unlabeled(pool_rows, uratio=2, n_steps=3)
    learn = ssl_learner(dls, m if name in ('dst','selftuning') else m[:2], cbs=[Steps(), registered_methods[name].cls()], loss_func=loss, init_head=None)
    with quiet(learn), pytest.raises(ValueError, match='one class per row'): learn.fit(1)
    assert getattr(learn.steps, 'n', 0)==0

def test_a_language_model():
    "Tokens are not one class per row"
    df = pd.DataFrame(dict(text=['a b c d e f g h '*6]*20))
    dls = TextDataLoaders.from_df(df, text_col='text', is_lm=True, bs=4, seq_len=8, tok_tfm=BaseTokenizer())
    n = len(dls.vocab)
    def lm(): return nn.Sequential(nn.Embedding(n, 4), nn.Linear(4, n))
    learn = Learner(dls, lm(), loss_func=CrossEntropyLossFlat(), cbs=[Steps(), DistillCallback(lm())], path=Path(tempfile.mkdtemp()))
    refused(learn, lambda: learn.fit(1))
