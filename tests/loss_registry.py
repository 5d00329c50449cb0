"Every loss with the inputs it takes, for tests that all losses must pass"
from functools import partial
import torch
from fastssl.core import *
from fastssl.schedules import *
from fastssl.models.layers import *
from fastssl.losses.semi import *
from fastssl.losses.adapt import *
from fastssl.losses.adversarial import *
from fastssl.losses.metric import *
from fastssl.losses.distill import *
from fastssl.losses.keypoint import *
from fastssl.semi.self_tuning import ClassQueue, pgc_loss

def draw(kind, N=4, C=3, M=None, scale=1., dtype=torch.float32, gen=None, flat=False):
    "A tensor of `kind`; `scale` is the range of logits and features, `flat` makes all rows equal"
    M = N if M is None else M
    randn = lambda *s: torch.randn(*s, generator=gen, dtype=torch.float64)
    if kind.endswith('M'): kind,N = kind[:-1],M
    if kind in ('labels', 'ids'): return torch.randint(0, C if kind=='labels' else (1 if flat else 3), (N,), generator=gen)
    if kind in ('mask', 'weight'): return torch.rand(N, generator=gen, dtype=torch.float64).round().to(dtype)
    if kind=='share': return (randn(N).sigmoid()*.9+.05).to(dtype)
    if kind=='weightK': return torch.rand(N, 3, generator=gen, dtype=torch.float64).to(dtype)
    x = (randn(N, 3, 5, 7) if kind in ('maps', 'heat') else randn(N, C))*scale
    if flat: x = x[:1].expand_as(x)
    x = x.clamp(-1e4, 1e4)
    if kind=='probs': x = x.softmax(1)
    if kind=='heat': x = x.relu()
    assert kind in ('logits', 'feats', 'probs', 'maps', 'heat'), kind
    return x.contiguous().to(dtype)

class Case:
    "A loss `f`, and its inputs in order as `name:kind`; a `*` marks those that receive a gradient"
    def __init__(self, f, spec, gradcheck=True, by_size=False):
        "With `by_size`, `f` takes the number of classes or features and returns the loss"
        self.f,self.make,self.gradcheck = f,f if by_size else None,gradcheck
        parts = [o.split(':') for o in spec.split()]
        self.kinds,self.grads = {n.strip('*'):k for n,k in parts},[n.strip('*') for n,_ in parts if '*' in n]
    def inputs(self, **kwargs):
        "Fresh leaves; floats require gradients, except masks and weights"
        if self.make: self.f = self.make(kwargs['C'])
        res = {n:draw(k, **kwargs) for n,k in self.kinds.items()}
        return {n:x.requires_grad_() if x.is_floating_point() and self.kinds[n] not in ('mask','weight','weightM','weightK') else x for n,x in res.items()}
    def __call__(self, **inputs):
        "The loss alone, if more is returned"
        out = self.f(*inputs.values())
        return out[0] if isinstance(out, tuple) else out

def abs_distance(a, b): return (a-b).abs()
class PGC(torch.nn.Module):
    "Pseudo group contrast with a fixed queue"
    def __init__(self, dim):
        super().__init__()
        self.queue = ClassQueue(dim, 3, K=2)
        self.queue.queue_list.copy_(torch.linspace(-1, 1, dim*6).view(dim, 6))
    @in_float32
    def forward(self, h_q, h_k, labels): return pgc_loss(*self.queue.contrast(*(torch.nn.functional.normalize(o, dim=1) for o in (h_q, h_k)), labels))

two = 'y_s:{0} y_s_adv*:{0} y_t:{0}M y_t_adv*:{0}M'
de = 'logits_lb_w*:logits logits_lb_s*:logits logits_ulb_w:logitsM logits_ulb_s*:logitsM y_lb:labels'
losses = dict(
    self_training=Case(ConfidenceBasedSelfTrainingLoss(.5), 'y*:logits y_target:logits'),
    consistency=Case(ConsistencyLoss(abs_distance, 'sum'), 'p1*:probs p2*:probs mask:mask'),
    l2_consistency=Case(L2ConsistencyLoss(), 'p1*:probs p2*:probs mask:mask'),
    class_balance=Case(ClassBalanceLoss, 'p*:probs', by_size=True),
    uda=Case(StrongWeakConsistencyLoss(.5, .4), 'y_strong*:logits y:logits'),
    fixmatch_hard=Case(partial(fixmatch_consistency_loss, p_cutoff=.5), 'logits_w:logits logits_s*:logits'),
    fixmatch_soft=Case(partial(fixmatch_consistency_loss, T=.5, p_cutoff=.5, use_hard_labels=False), 'logits_w:logits logits_s*:logits'),
    defixmatch=Case(partial(defixmatch_objective, p_cutoff=.5), de),
    defixmatch_soft=Case(partial(defixmatch_objective, p_cutoff=.5, hard_label=False), de, gradcheck=False),                # its weak labeled logits are both target and prediction
    entropy=Case(partial(entropy, reduction='mean'), 'p*:probs'),
    mcc=Case(MinimumClassConfusionLoss(.5), 'logits*:logits', gradcheck=False),                       # its weights are detached
    cc_consistency=Case(CCConsistency(1., .5), 'logits:logits logits_strong*:logits', gradcheck=False),
    feature_norm=Case(AdaptiveFeatureNorm(1.), 'f*:feats', gradcheck=False),
    discrepancy=Case(classifier_discrepancy, 'p1*:probs p2*:probs'),
    mcd_entropy=Case(mcd_entropy, 'p*:probs'),
    mdd=Case(ClassificationMarginDisparityDiscrepancy(), two.format('logits')),
    mdd_weights=Case(ClassificationMarginDisparityDiscrepancy(reduction='sum'), two.format('logits')+' w_s:weight w_t:weightM'),
    mdd_regression=Case(RegressionMarginDisparityDiscrepancy(), two.format('feats')),
    mdd_custom=Case(MarginDisparityDiscrepancy(abs_distance, l2_distance), two.format('feats').replace('y_s:', 'y_s*:').replace('y_t:', 'y_t*:')),
    domain=Case(domain_loss, 'd_s*:share d_t*:shareM w_s:weight w_t:weightM'),
    worst_case=Case(WorstCaseEstimationLoss(2.), two.format('logits')),
    triplet=Case(TripletLoss(.3), 'f*:feats labels:ids'),
    triplet_normalized=Case(TripletLoss(.3, True), 'f*:feats labels:ids'),
    soft_triplet=Case(SoftTripletLoss(), 'features_1*:feats features_2:feats labels:ids'),
    soft_triplet_margin=Case(SoftTripletLoss(0.), 'features_1*:feats features_2:feats labels:ids'),
    soft_triplet_normalized=Case(SoftTripletLoss(None, True), 'features_1*:feats features_2:feats labels:ids'),
    distillation=Case(KnowledgeDistillationLoss(2.), 'y_student*:logits y_teacher:logits'),
    **{f'teacher_{k}':Case(teacher_loss(k), 's*:logits t:logits y:labels') for k in teacher_losses},
    teacher_standardized=Case(KDLoss(2., standardize=True), 's*:logits t:logits'),
    soft_cross_entropy=Case(CrossEntropyLossSoft(), 'y*:logits labels:logits'),
    label_smooth=Case(CrossEntropyLossLabelSmooth, 'y*:logits labels:labels', by_size=True),
    joints_mse=Case(JointsMSELoss(), 'output*:maps target:heat target_weight:weightK'),
    joints_kl=Case(JointsKLLoss(), 'output*:maps target:heat target_weight:weightK'),
    regression_disparity_min=Case(partial(RegressionDisparity(PseudoLabelGenerator2d(3, 5, 7), JointsKLLoss(epsilon=1e-7)), mode='min'), 'y:maps y_adv*:maps'),
    regression_disparity_max=Case(partial(RegressionDisparity(FastPseudoLabelGenerator2d(), JointsKLLoss(epsilon=1e-7)), mode='max'), 'y:maps y_adv*:maps'),
    pseudo_group_contrast=Case(PGC, 'h_q*:feats h_k:feats labels:ids', by_size=True),
)
