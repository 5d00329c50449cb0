"""All stored reference vectors, one pytest case each.

`FASTSSL_REFERENCE` names the folder with `index.json` and `arrays.npz`; by default the copy in `tests/reference`.
An `fn`, field or name that this runner does not know is an error, not a skip."""
import json, math, os
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn

folder = Path(os.environ.get('FASTSSL_REFERENCE') or Path(__file__).parent/'reference')
npz = np.load(folder/'arrays.npz')
A = {k:npz[k] for k in npz.files}
cases = json.loads((folder/'index.json').read_text())['cases']

# Callables that cases refer to by name
distances = dict(
    abs_sum=lambda a,b: (a-b).abs().sum(1), sq_sum=lambda a,b: (a-b).square().sum(1), sq_mean=lambda a,b: (a-b).square().mean(1),
    one_minus_cosine=lambda a,b: 1-F.cosine_similarity(a, b, dim=1), l1_scalar=lambda a,b: (a-b).abs().mean())
elementwise = dict(l1=F.l1_loss, mse=F.mse_loss, smooth_l1=F.smooth_l1_loss)
mappings = dict(linear=lambda x: x, convex=lambda x: x/(2-x), concave=lambda x: (x+1).log()/math.log(2))

def named(init, **tables):
    "`init` with names replaced by the callables of `tables`"
    return {k: tables[k][v] if k in tables else v for k,v in init.items()}

# Loss and function adapters: `fn` → call of (case's init, case's call, *inputs)
def by_class(module, name=None, **tables):
    def _f(fn, init, call, args): return getattr(module_of(module), name or fn)(**named(init, **tables))(*args, **call)
    return _f
def by_function(module, name=None):
    def _f(fn, init, call, args): return getattr(module_of(module), name or fn)(*args, **init, **call)
    return _f
def module_of(name):
    from importlib import import_module
    return import_module(f'fastssl.{name}')

def _keypoints(fn, init, call, args): return module_of('losses.keypoint').__dict__[fn](**init)(*args, **call)
def _regression_disparity(fn, init, call, args):
    kp,init = module_of('losses.keypoint'),dict(init)
    red,crit = init.pop('criterion_reduction'),init.pop('criterion')
    crit = dict(kl_eps1e_7=partial(kp.JointsKLLoss, epsilon=1e-7), mse=kp.JointsMSELoss)[crit.replace('-', '_')](reduction=red)
    return kp.RegressionDisparity(kp.PseudoLabelGenerator2d(**init), crit)(*args, **call)
def _dropout(fn, init, call, args): return module_of('models.layers').l2_preserved_dropout(args[0], init['p'], keep=args[1])

adapters = dict(
    ConfidenceBasedSelfTrainingLoss=by_class('losses.semi'), ConsistencyLoss=by_class('losses.semi', distance_measure=distances),
    L2ConsistencyLoss=by_class('losses.semi'), ClassBalanceLoss=by_class('losses.semi'), StrongWeakConsistencyLoss=by_class('losses.semi'),
    fixmatch_consistency_loss=by_function('losses.semi'), DeFixMatchObjective=by_function('losses.semi', 'defixmatch_objective'),
    sigmoid_warm_up=by_function('schedules'), cosine_7_16_lr_factor=by_function('schedules'), inverse_decay_lr=by_function('schedules'),
    MinimumClassConfusionLoss=by_class('losses.adapt'), CCConsistency=by_class('losses.adapt'), entropy=by_function('losses.adapt'),
    AdaptiveFeatureNorm=by_class('losses.adapt'), classifier_discrepancy=by_function('losses.adversarial'), mcd_entropy=by_function('losses.adversarial'),
    shift_log=by_function('losses.adversarial'), WorstCaseEstimationLoss=by_class('losses.adversarial'),
    MarginDisparityDiscrepancy=by_class('losses.adversarial', source_disparity=distances, target_disparity=distances),
    ClassificationMarginDisparityDiscrepancy=by_class('losses.adversarial'),
    RegressionMarginDisparityDiscrepancy=by_class('losses.adversarial', loss_function=elementwise),
    SoftTripletLoss=by_class('losses.metric'), TripletLoss=by_class('losses.metric'),
    CrossEntropyLossSoft=by_class('losses.distill'), CrossEntropyLossLabelSmooth=by_class('losses.distill'), KnowledgeDistillationLoss=by_class('losses.distill'),
    PseudoLabelGenerator2d=_keypoints, FastPseudoLabelGenerator2d=_keypoints, JointsKLLoss=_keypoints, JointsMSELoss=_keypoints,
    RegressionDisparity=_regression_disparity, GradientReverse=by_function('models.layers', 'gradient_reverse'), L2PreservedDropout=_dropout)

# Comparison
def numpy(x): return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
def check(case, what, actual, key):
    "Compare `actual` with the array named `key`: equal shape, and values within the case's tolerance (or finite, where the reference is not)"
    actual,expected = numpy(actual),A[key]
    if case['check']=='quirk': return
    if case['check']=='finite':
        assert np.isfinite(actual.astype(float)).all(), f'{what} is not finite'
        return
    assert case['check']=='match', f"unknown check {case['check']!r}"
    assert actual.shape==expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    np.testing.assert_allclose(actual.astype(float), expected.astype(float), rtol=case['rtol'], atol=case['atol'], err_msg=what)
def check_grad(case, what, actual, key, like):
    "Compare a gradient; `null` or an absent gradient means zero"
    if key is None: assert actual is None or not actual.any(), f"{what}: unexpected gradient"
    else: check(case, what, torch.zeros_like(like) if actual is None else actual, key)

def load(case, key, grad=False):
    "The array `key` as a tensor: floats in the case's dtype"
    x = torch.from_numpy(np.array(A[key]))
    return x.to(getattr(torch, case['dtype'])).requires_grad_(grad) if x.is_floating_point() else x

def run_loss(case):
    inputs = {n:load(case, k, n in case['grads']) for n,k in case['inputs'].items()}
    alias,fn,call = case.get('alias', {}),case['fn'],case['call']
    args = [numpy(o) for o in inputs.values()] if fn in ('cosine_7_16_lr_factor', 'inverse_decay_lr') else list(inputs.values())
    if alias: args,call = [],{**call, **inputs, **{n:inputs[o] for n,o in alias.items()}}   # an alias has no position, so pass all by name
    out = adapters[fn](fn, case['init'], call, args)
    outs = dict(zip(case['outputs'], out if isinstance(out, tuple) else (out,), strict=True))
    for n,key in case['outputs'].items(): check(case, n, outs[n], key)
    if not case['grads']: return
    primary = outs[case['primary']]
    leaves = {n:x for n,x in inputs.items() if n in case['grads'] and n not in alias}
    if primary.requires_grad:
        scalar = primary if not primary.ndim else (primary*load(case, case['cotangent'])).sum()
        grads = dict(zip(leaves, torch.autograd.grad(scalar, list(leaves.values()), allow_unused=True)))
    else: grads = {n:None for n in leaves}
    for n,g in grads.items(): check_grad(case, f'gradient of {n}', g, case['grads'][n], leaves[n])

# Modules: a small head on an identity backbone
def _classifier(cls, module, init):
    init = dict(init); backbone = nn.Identity(); backbone.out_features = init.pop('in_features')
    return getattr(module_of(module), cls)(backbone, pool_layer=nn.Identity(), **init)
def _mcd(init): return module_of('adapt.mcd').MCDImageClassifierHead(**init, pool_layer=nn.Identity())
def _pose(init): return module_of('adapt.regda').PoseResNet2d(nn.Identity(), nn.Identity(), **init)
models = dict(MDDImageClassifier=partial(_classifier, 'MDDImageClassifier', 'adapt.mdd'), DSTImageClassifier=partial(_classifier, 'DSTImageClassifier', 'semi.dst'),
              MCDImageClassifierHead=_mcd, PoseResNet2d=_pose)

def role_modules(model, roles):
    "Modules with weights by role: `head_fc1`, `head_fc2` … are those of the part `head` in forward order"
    parts = dict(bottleneck='neck', head='head', adv='heads.adv', pseudo='heads.pseudo')
    res,seen = {},{}
    for r in roles:
        prefix = r.split('_')[0]
        part = model.get_submodule(parts[prefix]) if prefix in parts else model
        seen.setdefault(part, iter([m for m in part.modules() if getattr(m, 'weight', None) is not None]))
        res[r] = next(seen[part])
    for m,left in seen.items(): assert not list(left), f'{type(m).__name__} has more weights than the case names'
    return res

def run_module(case):
    model = models[case['fn']](case['init'])
    for m in model.modules():
        if isinstance(m, nn.modules.dropout._DropoutNd): m.p = 0.
    x = load(case, case['inputs']['x'], True)
    weights = {n:k for n,k in case['inputs'].items() if n.startswith('weights.')}
    roles = role_modules(model, dict.fromkeys(n.split('.')[1] for n in weights))
    param = lambda n: getattr(roles[n.split('.')[1]], n.split('.')[2])
    for n,k in weights.items(): param(n).data.copy_(load(case, k))
    for _ in range(case['call']['step_calls_before']): model.step()
    out = model.train(case['call']['training'])(x)
    outs = dict(zip(case['outputs'], out if isinstance(out, tuple) else (out,), strict=True))
    for n,k in case['outputs'].items(): check(case, n, outs[n], k)
    sum((o*load(case, case['inputs'][f'cotangent.{n}'])).sum() for n,o in outs.items()).backward()
    for n,k in case['grads'].items():
        leaf = x if n=='x' else param(n)
        check_grad(case, f'gradient of {n}', leaf.grad, k, leaf)

# Traces: one object through several steps
def trace_ema(case):
    n_in,n_out = map(int, case['init']['model'].removeprefix('linear(').removesuffix(')').split(','))
    student = nn.Linear(n_in, n_out)
    def put(i, w, b): student.weight.data.copy_(load(case, i[w])); student.bias.data.copy_(load(case, i[b]))
    put(case['setup'], 'weight', 'bias')
    teacher = module_of('training.ema_teacher').EMATeacher(student, case['init']['alpha'])
    for s in case['steps']:
        put(s['inputs'], 'student_weight', 'student_bias')
        teacher.set_alpha(s['alpha'])
        x = load(case, s['inputs']['x'])
        yield 'teacher_out_before', teacher(x), s
        teacher.update()
        w,b = teacher.parameters()
        yield 'teacher_weight', w, s
        yield 'teacher_bias', b, s
        yield 'teacher_out_after', teacher(x), s

class Encoder(nn.Module):
    def __init__(self, proj, cls): super().__init__(); self.proj,self.cls = nn.Parameter(proj),nn.Parameter(cls)
    def forward(self, x): return F.normalize(x@self.proj.T, dim=1), x@self.cls.T
def trace_self_tuning(case):
    i,new = {k:v for k,v in case['init'].items() if k!='projection_dim'},lambda: Encoder(load(case, case['setup']['proj_weight']), load(case, case['setup']['cls_weight']))
    q = new()
    m = module_of('semi.self_tuning').SelfTuning(q, new(), **i, projection_dim=case['init']['projection_dim'])
    m.queue.queue_list.copy_(load(case, case['setup']['queue']))
    for s in case['steps']:
        a = s['inputs']
        q.proj.data.copy_(load(case, a['student_proj_weight'])); q.cls.data.copy_(load(case, a['student_cls_weight']))
        im_q = load(case, a['im_q'], True)
        logits,labels,y_q = m(im_q, load(case, a['im_k']), load(case, a['labels']))
        loss = F.kl_div(logits, labels, reduction='batchmean')
        res = dict(pgc_logits=logits, pgc_labels=labels, y_q=y_q, pgc_loss=loss, pgc_loss_grad_im_q=torch.autograd.grad(loss, im_q)[0], queue=m.queue.queue_list,
                   queue_ptr=m.queue.queue_ptr, key_proj_weight=m.encoder_k.proj, key_cls_weight=m.encoder_k.cls)
        for n,v in res.items(): yield n, v, s

def trace_thresholds(case):
    m = module_of('semi.flexmatch').DynamicThresholdingModule(**named(case['init'], mapping_func=mappings))
    for s in case['steps']:
        idxes,sel,pl = (load(case, s['inputs'][n]) for n in ('idxes', 'selected_mask', 'pseudo_labels'))
        yield 'threshold', m.get_threshold(pl), s
        yield 'class_threshold', m.get_threshold(torch.arange(case['init']['num_classes'])), s
        m.update(idxes, sel, pl)
        yield 'learned_label', m.net_outputs, s

def trace_warm_start(case):
    layer = getattr(module_of('models.layers'), case['fn'])(**case['init'])
    for s in case['steps']:
        yield 'iter_before', layer.iter_num, s
        x = load(case, s['inputs']['x'], True)
        y = layer(x)
        yield 'y', y, s
        yield 'grad_x', torch.autograd.grad((y*load(case, s['inputs']['cotangent'])).sum(), x)[0], s
        for _ in range(s['calls_to_step_after']): layer.step()
        yield 'iter_after', layer.iter_num, s

traces = dict(EMATeacher=trace_ema, SelfTuning=trace_self_tuning, DynamicThresholdingModule=trace_thresholds,
              WarmStartGradientReverseLayer=trace_warm_start, WarmStartGradientLayer=trace_warm_start)

def run_trace(case):
    seen = set()
    for what,value,step in traces[case['fn']](case):
        i = next(i for i,s in enumerate(case['steps']) if s is step)
        check(case, f'step {i}: {what}', value, step['expect'][what])
        seen.add((i, what))
    expected = {(i, n) for i,s in enumerate(case['steps']) for n in s['expect']}
    assert seen==expected, f'not compared: {sorted(expected-seen)}'

# Shapes
def run_shape(case):
    assert case['fn']=='UpsamplingShape'
    m = module_of('models.layers').Upsampling(**case['init'])
    check(case, 'out_shape', m(torch.zeros(case['in_shape'])).shape, case['outputs']['out_shape'])
    check(case, 'n_params', sum(p.numel() for p in m.parameters() if p.requires_grad), case['outputs']['n_params'])

runners = dict(loss=run_loss, function=run_loss, module=run_module, trace=run_trace, shape=run_shape)
fields = set('id fn kind init call dtype tags check rtol atol note inputs alias outputs primary grads cotangent setup steps in_shape'.split())

@pytest.mark.parametrize('case', cases, ids=[c['id'] for c in cases])
def test_case(case):
    assert not set(case)-fields, f'unknown fields: {set(case)-fields}'
    old = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, case['dtype']))
    try: runners[case['kind']](case)
    finally: torch.set_default_dtype(old)

def test_ids_are_unique(): assert len({c['id'] for c in cases})==len(cases)>0
