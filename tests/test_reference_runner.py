"The runner of reference vectors accepts every documented form, and detects wrong numbers"
import numpy as np, pytest, torch
import torch.nn.functional as F
import test_reference as tr

def case(fn, kind='loss', inputs={}, outputs={}, grads={}, init={}, call={}, check='match', dtype='float64', **extra):
    "A case, with its arrays stored where the runner looks for them"
    def _put(part, arrays):
        keys = {n:None if v is None else f'made.{part}.{n}' for n,v in arrays.items()}
        tr.A.update({keys[n]:np.asarray(v) for n,v in arrays.items() if v is not None})
        return keys
    return dict(id=f'{fn}/made', fn=fn, kind=kind, init=init, call=call, dtype=dtype, tags=[], check=check, rtol=1e-9, atol=1e-12, inputs=_put('in', inputs),
                outputs=_put('out', outputs), primary=next(iter(outputs)), grads=_put('grad', grads), **extra)

@pytest.fixture(autouse=True)
def arrays(monkeypatch): monkeypatch.setattr(tr, 'A', dict(tr.A))

rng = np.random.default_rng(0)
a,b = rng.normal(size=(2,4,3)); o,t,w = rng.normal(size=(2,3,4,4)),rng.uniform(size=(2,3,4,4)),rng.uniform(size=(2,3))

def forms():
    "Documented forms that the public cases do not use"
    tr.A['made.ones'] = np.ones(2)
    d = a-b
    yield case('ConsistencyLoss', inputs=dict(p1=a, p2=b), outputs=dict(loss=(d**2).mean(1)), init=dict(distance_measure='sq_mean', reduction='none'))
    yield case('MarginDisparityDiscrepancy', inputs=dict(y_s=a, y_s_adv=b, y_t=b, y_t_adv=a), outputs=dict(loss=-np.abs(d).mean()),
               init=dict(source_disparity='l1_scalar', target_disparity='l1_scalar', margin=2., reduction='mean'))
    hub = np.where(np.abs(d)<1, .5*d**2, np.abs(d)-.5)
    yield case('RegressionMarginDisparityDiscrepancy', inputs=dict(y_s=a, y_s_adv=b, y_t=b, y_t_adv=a), outputs=dict(loss=-3*hub.sum()), init=dict(margin=4., loss_function='smooth_l1', reduction='sum'))
    logq = o.reshape(2,3,-1)-np.log(np.exp(o.reshape(2,3,-1)).sum(-1, keepdims=True)); q = t.reshape(2,3,-1)/t.reshape(2,3,-1).sum(-1, keepdims=True)
    yield case('JointsKLLoss', inputs=dict(output=o, target=t, target_weight=w), outputs=dict(loss=((q*(np.log(q)-logq)).sum(-1)*w).mean(1)), init=dict(reduction='none'))
    yield case('entropy', 'function', inputs=dict(predictions=np.full((2,4), .25)), outputs=dict(entropy=np.full(2, -np.log(.25+1e-5))), grads=dict(predictions=np.full((2,4), -np.log(.25+1e-5)-.25/(.25+1e-5))), cotangent='made.ones')
    yield case('L2ConsistencyLoss', inputs=dict(p1=a), outputs=dict(loss=0.), grads=dict(p1=0*a), alias=dict(p2='p1'))
    yield case('JointsMSELoss', inputs=dict(output=o, target=t), outputs=dict(loss=np.nan), check='finite')
    yield case('JointsMSELoss', inputs=dict(output=o, target=t), outputs=dict(loss=123.), check='quirk')
    yield case('StrongWeakConsistencyLoss', inputs=dict(y_strong=a, y=b), outputs=dict(loss=0.), grads=dict(y_strong=None, y=None), init=dict(threshold=1., temperature=1.))

run = tr.test_case

def test_documented_forms():
    for c in forms(): run(c)

def test_a_module_in_evaluation():
    c = next(dict(c) for c in tr.cases if c['fn']=='MDDImageClassifier')
    c['call'] = c['call']|dict(training=False)
    model = tr.models[c['fn']](c['init'])
    weights = {n:k for n,k in c['inputs'].items() if n.startswith('weights.')}
    roles = tr.role_modules(model, dict.fromkeys(n.split('.')[1] for n in weights))
    for n,k in weights.items(): getattr(roles[n.split('.')[1]], n.split('.')[2]).data = torch.tensor(tr.A[k])
    x = torch.tensor(tr.A[c['inputs']['x']])
    tr.A['made.eval'] = model.double().eval()(x).detach().numpy()
    c['outputs'] = dict(outputs='made.eval')
    c['grads'] = {n:None for n in c['grads'] if n.startswith('weights.adv')}
    run(c)

@pytest.mark.parametrize('fn', sorted({c['fn'] for c in tr.cases}))
def test_wrong_numbers_are_detected(fn):
    "One stored array of a case, changed slightly"
    c = next(c for c in tr.cases if c['fn']==fn and c['check']=='match')
    last = c['steps'][-1]['expect'] if c['kind']=='trace' else c['grads'] if any(c['grads'].values()) else c['outputs']
    key = next(k for k in reversed(list(last.values())) if k)
    tr.A[key] = tr.A[key]+(1 if tr.A[key].dtype.kind=='i' else 1e-3)
    with pytest.raises(AssertionError): run(c)

def test_unknown_fields_and_functions_are_errors():
    c = dict(tr.cases[0])
    with pytest.raises(AssertionError, match='unknown fields'): run(c|dict(weight=1))
    with pytest.raises(KeyError): run(c|dict(fn='NoSuchLoss'))
